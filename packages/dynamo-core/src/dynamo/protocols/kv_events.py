"""Changes of a prefix cache, in two forms.

*Engine* events carry the engine's own opaque block hashes plus the token ids of what was stored. The worker's publisher
turns them into *router* events, which carry our sequence hashes (`dynamo.protocols.hashing`) and the numbers that let
an indexer see gaps (DESIGN 4.2).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

__all__ = [
    "KV_EVENTS_SUBJECT",
    "KV_SNAPSHOT_ENDPOINT",
    "AllBlocksCleared",
    "BlockRemoved",
    "BlockStored",
    "EngineKvEvent",
    "EngineKvEvents",
    "HashesRemoved",
    "HashesStored",
    "KvEventBatch",
    "KvSnapshotRequest",
]

#: Subject of the event plane that carries `KvEventBatch`.
KV_EVENTS_SUBJECT = "kv_events"
#: Endpoint of every worker that publishes KV events; answers a `KvSnapshotRequest` with `KvEventBatch` items.
KV_SNAPSHOT_ENDPOINT = "kv_snapshot"

#: An engine's own name for a block: never compared between workers.
OpaqueHash: TypeAlias = "int | bytes"


class BlockStored(msgspec.Struct, omit_defaults=True, frozen=True, tag="stored"):
    """Full blocks entered the cache, each the child of the one before it."""

    block_hashes: list[int | bytes]
    token_ids: list[int]
    """Ids of all the blocks in order: ``len(block_hashes) * block_size`` of them."""
    block_size: int
    parent_hash: int | bytes | None = None
    """Block before the first one; None at the start of a sequence."""
    lora: str | None = None
    cache_salt: str | None = None
    medium: str = "device"
    """``device``, ``host`` or ``disk``."""
    group: int = 0
    """KV cache group; only full-attention groups are reported."""


class BlockRemoved(msgspec.Struct, omit_defaults=True, frozen=True, tag="removed"):
    """Blocks left the cache."""

    block_hashes: list[int | bytes]
    medium: str = "device"
    group: int = 0


class AllBlocksCleared(msgspec.Struct, omit_defaults=True, frozen=True, tag="cleared"):
    """The cache was emptied."""


EngineKvEvent: TypeAlias = "BlockStored | BlockRemoved | AllBlocksCleared"


class EngineKvEvents(msgspec.Struct, omit_defaults=True, frozen=True):
    """The events of one engine step, in order."""

    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    dp_rank: int = 0


class HashesStored(msgspec.Struct, omit_defaults=True, frozen=True, tag="s"):
    """Blocks entered a worker's cache, each the child of the one before it."""

    hashes: bytes
    """Sequence hashes, packed little-endian uint64."""
    parent: int | None = None
    """Sequence hash of the block before the first; None at the start of a sequence."""
    medium: str = "device"


class HashesRemoved(msgspec.Struct, omit_defaults=True, frozen=True, tag="r"):
    """Blocks left a worker's cache."""

    hashes: bytes
    """Sequence hashes, packed little-endian uint64."""
    medium: str = "device"


class KvEventBatch(msgspec.Struct, omit_defaults=True, frozen=True):
    """What an engine step, or several that came together, changed in the cache of one rank.

    `sequence` grows by one per batch of (instance, rank, epoch); a hole means that something was lost, and the
    listener asks the worker's `kv_snapshot` endpoint. A new `epoch` means that the worker began anew. A batch with
    `snapshot` replaces everything known of this rank: it is the cache's content at `sequence`.
    """

    instance_id: int
    dp_rank: int
    epoch: int
    sequence: int
    block_size: int
    events: list[HashesStored | HashesRemoved | AllBlocksCleared]
    model: str = ""
    snapshot: bool = False


class KvSnapshotRequest(msgspec.Struct, omit_defaults=True, frozen=True):
    """Asks for what came after batch `after` of `epoch`: those batches while they are kept, else a snapshot."""

    dp_rank: int = 0
    epoch: int = 0
    after: int = -1
