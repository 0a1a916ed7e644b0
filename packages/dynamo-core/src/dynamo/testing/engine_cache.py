"""The prefix cache of an engine that does not exist: random changes, as the KV events that an engine would send.

For tests of whoever follows such events: publishers, indexers, listeners.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynamo.protocols.hashing import sequence_hashes
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EngineKvEvent

__all__ = ["CachedBlock", "EngineCache"]

#: Different token ids; so few that branches often begin alike.
_TOKENS = 3


class CachedBlock(NamedTuple):
    """One block that the cache holds."""

    tokens: list[int]
    """Its own, and all before them."""
    medium: str
    parent: int | None
    """The opaque hash of the block before it."""


class EngineCache:
    """A tree of blocks that grows at any of them and loses leaves, as engines evict."""

    def __init__(self, rng: random.Random, block_size: int, *, media: Sequence[str] = ("device",)) -> None:
        """Each branch is in one of `media`."""
        self._rng = rng
        self._block_size = block_size
        self._media = media
        self._next = 0
        self.blocks: dict[int, CachedBlock] = {}
        """By the opaque hashes that events have."""

    def step(self) -> EngineKvEvent:
        """One random change."""
        kind = self._rng.random()
        if not self.blocks or kind < 0.6:
            return self._grow()
        if kind < 0.998:
            parents = {block.parent for block in self.blocks.values()}
            gone = self._rng.choice([name for name in self.blocks if name not in parents])
            return BlockRemoved([gone], medium=self.blocks.pop(gone).medium)
        self.blocks.clear()
        return AllBlocksCleared()

    def content(self) -> set[tuple[str, int]]:
        """What is held: media and sequence hashes."""
        return {(block.medium, self._hashes(block)[-1]) for block in self.blocks.values()}

    def _hashes(self, block: CachedBlock) -> list[int]:
        hashes: list[int] = sequence_hashes(np.asarray(block.tokens, np.uint32), self._block_size).tolist()
        return hashes

    def _grow(self) -> BlockStored:
        name, self._next = self._next, self._next + 1
        parent = self._rng.choice([None, *self.blocks])
        above, medium = ([], self._rng.choice(self._media)) if parent is None else self.blocks[parent][:2]
        own = [self._rng.randrange(_TOKENS) for _ in range(self._block_size)]
        self.blocks[name] = CachedBlock([*above, *own], medium, parent)
        return BlockStored([name], own, self._block_size, parent_hash=parent, medium=medium)
