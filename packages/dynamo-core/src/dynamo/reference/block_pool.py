"""Who holds which KV block: references, the prefix cache, its eviction and its events.

A full block is named by a hash that chains its parent's name with its tokens, and starts from a root that holds the
cache salt and the LoRA adapter: equal names mean equal KV. A block that nobody references stays cached until its memory
is needed, least recently used first.

Leaves go before their parents without any bookkeeping, because every sequence that references a block references the
cached block of each prefix too (`publish` swaps a duplicate for the cached original), and releases them leaf first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EngineKvEvent

__all__ = ["BlockPool", "CacheScope", "CachedBlock", "block_hash"]

#: 128 bits: tenants choose their own tokens, so nobody may find two chains with one name.
HASH_BYTES = 16


class CacheScope(NamedTuple):
    """What separates prefixes with equal tokens."""

    lora: str | None = None
    lora_fingerprint: str | None = None
    cache_salt: str | None = None

    def root(self) -> bytes:
        """Name of the empty prefix."""
        return hashlib.blake2b(msgspec.msgpack.encode(tuple(self)), digest_size=HASH_BYTES).digest()


class CachedBlock(NamedTuple):
    """A full block in the prefix cache."""

    name: bytes
    parent: bytes | None
    """None at the start of a sequence."""
    token_ids: npt.NDArray[np.int32]
    scope: CacheScope


def block_hash(parent: bytes, token_ids: npt.NDArray[np.int32]) -> bytes:
    """Name of the block that follows `parent` (a root, or a block's name)."""
    return hashlib.blake2b(parent + token_ids.tobytes(), digest_size=HASH_BYTES).digest()


class BlockPool:
    """`num_blocks` blocks; not thread-safe, belongs to the engine thread."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._free = list(range(num_blocks - 1, -1, -1))  # popped from the end: low numbers first
        self._references = [0] * num_blocks
        self._blocks: dict[bytes, int] = {}
        self._cached: dict[int, CachedBlock] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._events: list[EngineKvEvent] = []

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give now."""
        return len(self._free) + len(self._evictable)

    @property
    def used(self) -> int:
        """Blocks that somebody references."""
        return self.num_blocks - self.available

    @property
    def evictable(self) -> int:
        """Blocks that only the prefix cache holds."""
        return len(self._evictable)

    def match(self, names: Sequence[bytes]) -> list[int]:
        """Reference the cached blocks of the longest cached prefix of `names`."""
        found = []
        for name in names:
            block = self._blocks.get(name)
            if block is None:
                break
            self._reference(block)
            found.append(block)
        return found

    def allocate(self, count: int) -> list[int] | None:
        """Reference `count` blocks of undefined content, evicting as needed; None, unchanged, if there are fewer."""
        if count > self.available:
            return None
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def publish(self, block: int, cached: CachedBlock) -> int:
        """Enter a block that the caller references and has filled; the block to use from now on.

        When the prefix is cached already (two requests computed it side by side), the caller's copy is freed and the
        cached one referenced in its place.
        """
        existing = self._blocks.get(cached.name)
        if existing is not None:
            if existing != block:
                self._reference(existing)
                self.release([block])
            return existing
        self._blocks[cached.name] = block
        self._cached[block] = cached
        self._note_stored(cached)
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """Give up references, `blocks` in sequence order; the last block becomes evictable first."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._cached:
                    self._evictable[block] = None
                else:
                    self._free.append(block)

    def clear(self) -> bool:
        """Empty the prefix cache; False, and no change, while a cached block is referenced."""
        if len(self._evictable) != len(self._cached):
            return False
        self._free.extend(reversed(self._evictable))
        self._evictable.clear()
        self._cached.clear()
        self._blocks.clear()
        self._events.append(AllBlocksCleared())
        return True

    def forget_lora(self, name: str) -> None:
        """Drop the cached blocks of an adapter that no request uses any more."""
        for block in [b for b in self._evictable if self._cached[b].scope.lora == name]:
            del self._evictable[block]
            self._drop(block)
            self._free.append(block)

    def cached_names(self) -> AbstractSet[bytes]:
        """Names of all blocks in the prefix cache."""
        return self._blocks.keys()

    def cached(self, block: int) -> CachedBlock | None:
        """What `block` is cached as."""
        return self._cached.get(block)

    def take_events(self) -> list[EngineKvEvent]:
        """What changed in the prefix cache since the last call, in order."""
        events, self._events = self._events, []
        return events

    def announce(self) -> None:
        """Say all over again, as events, what the prefix cache holds; stands for all events before it."""
        self._events = [AllBlocksCleared()]
        for cached in self._cached.values():  # inserted parents first
            self._note_stored(cached)

    def _reference(self, block: int) -> None:
        if self._references[block] == 0:
            del self._evictable[block]
        self._references[block] += 1

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        self._drop(block)
        return block

    def _drop(self, block: int) -> None:
        name = self._cached.pop(block).name
        del self._blocks[name]
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved):
            last.block_hashes.append(name)
        else:
            self._events.append(BlockRemoved([name]))

    def _note_stored(self, cached: CachedBlock) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockStored) and cached.parent is not None and last.block_hashes[-1] == cached.parent:
            last.block_hashes.append(cached.name)
            last.token_ids.extend(cached.token_ids.tolist())
            return
        stored = BlockStored(
            block_hashes=[cached.name],
            token_ids=cached.token_ids.tolist(),
            block_size=self.block_size,
            parent_hash=cached.parent,
            lora=cached.scope.lora,
            cache_salt=cached.scope.cache_salt,
        )
        self._events.append(stored)
