"""Blocks that a worker holds and that cannot be matched, since a block before them is missing.

Engines evict from the end of a prefix, so there are few; `dynamo.router.core.prefix_index` asks here when a missing
block comes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["HiddenBlocks"]


class HiddenBlocks:
    """The hidden blocks of one worker, by their parents; at most `limit`, beyond which new ones are not kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parents: dict[int, int] = {}
        self._children: dict[int, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Each block and its parent."""
        return iter(self._parents.items())

    def add(self, hashes: Iterable[int], parent: int) -> None:
        """Keep a chain: each the child of the one before, the first of `parent`."""
        for sequence_hash in hashes:
            self.discard(sequence_hash)
            if len(self._parents) < self._limit:
                self._parents[sequence_hash] = parent
                self._children.setdefault(parent, {})[sequence_hash] = None
            parent = sequence_hash

    def discard(self, sequence_hash: int) -> bool:
        """Forget one block; whether it was here."""
        parent = self._parents.pop(sequence_hash, None)
        if parent is None:
            return False
        siblings = self._children[parent]
        del siblings[sequence_hash]
        if not siblings:
            del self._children[parent]
        return True

    def take_below(self, parent: int) -> list[int]:
        """Take out the children of `parent`, which shows now."""
        children = list(self._children.get(parent, ()))
        for child in children:
            self.discard(child)
        return children
