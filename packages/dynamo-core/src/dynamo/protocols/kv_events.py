"""Changes of a prefix cache, in two forms.

*Engine* events carry the engine's own opaque block hashes plus the token ids of what was stored. The worker's publisher
turns them into *router* events, which carry our sequence hashes (`dynamo.protocols.hashing`) and the numbers that let
an indexer see gaps (DESIGN 4.2).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

__all__ = ["AllBlocksCleared", "BlockRemoved", "BlockStored", "EngineKvEvent", "EngineKvEvents"]

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
