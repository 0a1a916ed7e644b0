"""A prefix cache that only keeps books: which prompt blocks are held, which are only cached, and every change of that.

The echo engine computes nothing, so nothing lies in these blocks; the accounting is real, so that routers, publishers
and tests see reuse, eviction and KV events as they do with an engine that has a KV cache.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from dynamo.errors import Overloaded
from dynamo.protocols.kv_events import BlockRemoved, BlockStored, EngineKvEvent

__all__ = ["EVENT_BACKLOG_LIMIT", "BlockCache", "HeldBlocks"]

#: Events that may wait for the consumer. Beyond it nothing new is cached, which makes no events either.
EVENT_BACKLOG_LIMIT = 10_000


@dataclass
class HeldBlocks:
    """What one request holds until it is released."""

    chain: list[int]
    """Hashes of the prompt's blocks that are in the cache, first to last."""
    private: int
    """Blocks that no other request can use: the partly filled last one, and what could not be cached."""
    cached_tokens: int
    """Tokens of `chain` that were there before."""


@dataclass
class BlockCache:
    """`total` blocks of `block_size` tokens, evicted in the order they were last released, children before parents."""

    total: int
    block_size: int
    events: list[EngineKvEvent] = field(default_factory=list)
    """What nobody has taken yet."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether there is any of it."""
    _holders: dict[int, int] = field(default_factory=dict)
    """Cached blocks in use, by hash, with the number of requests that hold them."""
    _idle: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Cached blocks that nobody holds; the first one goes first."""
    _private: int = 0

    @property
    def used(self) -> int:
        """Blocks that running requests hold."""
        return len(self._holders) + self._private

    @property
    def cached(self) -> int:
        """Blocks that only the cache holds."""
        return len(self._idle)

    def acquire(self, prompt: Sequence[int], salt: str | None) -> HeldBlocks:
        """Take the blocks of `prompt`, reusing its longest cached prefix and caching the rest.

        Raises:
            Overloaded: running requests hold too many blocks.
        """
        hashes = self._hashes(prompt, salt)
        hits = idle_hits = 0
        for block in hashes:
            if block in self._idle:
                idle_hits += 1
            elif block not in self._holders:
                break
            hits += 1
        needed = -(-len(prompt) // self.block_size) - hits
        if self.used + idle_hits + needed > self.total:
            raise Overloaded(
                f"the prompt needs {needed} KV blocks; {self.used} of {self.total} are in use",
                hint="start the echo engine with more --num-blocks",
                retry_after_seconds=1.0,
            )
        for block in hashes[:hits]:
            self._hold(block)
        removed = self._evict(self.used + self.cached + needed - self.total)
        stored = hashes[hits:] if len(self.events) < EVENT_BACKLOG_LIMIT else []
        # Nobody has these: what follows a block that is not cached is not cached either.
        self._holders.update(dict.fromkeys(stored, 1))
        held = HeldBlocks(hashes[:hits] + stored, needed - len(stored), hits * self.block_size)
        self._private += held.private
        self._publish(removed, stored, hashes[hits - 1] if hits else None, prompt[held.cached_tokens :], salt)
        return held

    def release(self, held: HeldBlocks) -> None:
        """Give back what :meth:`acquire` took. Idempotent: the second time there is nothing left to give back."""
        for block in reversed(held.chain):  # the end of a chain is evicted before what it hangs on
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                self._idle[block] = None
        self._private -= held.private
        held.chain, held.private = [], 0

    async def take_events(self) -> list[EngineKvEvent]:
        """Wait for changes; all that there are, in order."""
        await self._changed.wait()
        self._changed.clear()
        taken, self.events = self.events, []
        return taken

    def _hashes(self, prompt: Sequence[int], salt: str | None) -> list[int]:
        """A name for each prefix that ends with a full block. Only this process knows the key of Python's hash."""
        packed = array("I", prompt).tobytes()
        size = self.block_size * 4
        name, names = hash(salt or ""), []
        for start in range(0, len(packed) - size + 1, size):
            name = hash((name, packed[start : start + size]))
            names.append(name)
        return names

    def _hold(self, block: int) -> None:
        self._idle.pop(block, None)
        self._holders[block] = self._holders.get(block, 0) + 1

    def _evict(self, count: int) -> list[int | bytes]:
        return [self._idle.popitem(last=False)[0] for _ in range(count)]

    def _publish(
        self,
        removed: list[int | bytes],
        stored: Sequence[int],
        parent: int | None,
        tokens: Sequence[int],
        salt: str | None,
    ) -> None:
        if removed:
            self.events.append(BlockRemoved(removed))
        if stored:
            ids = list(tokens[: len(stored) * self.block_size])
            self.events.append(BlockStored(list(stored), ids, self.block_size, parent_hash=parent, cache_salt=salt))
        if self.events:
            self._changed.set()
