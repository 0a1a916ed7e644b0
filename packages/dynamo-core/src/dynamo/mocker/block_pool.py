"""The KV block pool of a simulated rank: only books, since nothing lies in the blocks.

A full block has a name that stands for its tokens and all tokens before it, so equal names mean equal KV. Named blocks
that nobody holds stay cached until their memory is needed, least recently used first. Leaves go before their parents
without any bookkeeping: who holds a block holds the cached block of each prefix too, and releases the last one first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

__all__ = ["BlockPool"]


class BlockPool:
    """`total` blocks: held and named, held and private (of one sequence, without a name), cached, or free."""

    __slots__ = ("_holders", "_idle", "_private", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self._holders: dict[int, int] = {}
        """Named blocks in use, with the number of sequences that hold them."""
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Named blocks that nobody holds; the first one is evicted first."""
        self._private = 0

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return len(self._holders) + self._private

    @property
    def cached(self) -> int:
        """Blocks that only the prefix cache holds."""
        return len(self._idle)

    def match(self, names: Sequence[int]) -> int:
        """How many leading blocks of `names` are cached or in use."""
        for index, name in enumerate(names):
            if name not in self._holders and name not in self._idle:
                return index
        return len(names)

    def fits(self, shared: Sequence[int], private: int) -> bool:
        """Whether :meth:`acquire` would find room."""
        idle = sum(name in self._idle for name in shared)
        return self.used + idle + private <= self.total

    def acquire(self, shared: Sequence[int], private: int) -> list[int]:
        """Hold the named blocks `shared`, which are there, and `private` new ones that fit; the names evicted."""
        for name in shared:
            if name in self._idle:
                del self._idle[name]
                self._holders[name] = 1
            else:
                self._holders[name] += 1
        self._private += private
        surplus = self.used + len(self._idle) - self.total
        return [self._idle.popitem(last=False)[0] for _ in range(surplus)]

    def publish(self, name: int) -> bool:
        """Give one private block of the caller the name that its content has; whether the name is new.

        When another sequence computed the same block meanwhile, the caller shares that one and its own is free.
        """
        self._private -= 1
        holders = self._holders.get(name)
        if holders is not None:
            self._holders[name] = holders + 1
            return False
        self._holders[name] = 1
        if name in self._idle:
            del self._idle[name]
            return False
        return True

    def release(self, shared: Sequence[int], private: int) -> None:
        """Give up named blocks, in sequence order, and private ones."""
        self._private -= private
        for name in reversed(shared):
            holders = self._holders[name] - 1
            if holders:
                self._holders[name] = holders
            else:
                del self._holders[name]
                self._idle[name] = None
