"""Who holds which prefix: a flat map from sequence hash to a set of workers, searched by galloping.

A sequence hash names a block *and* everything before it, so the longest cached prefix of a prompt is the last of
its hashes that a worker has, provided that each worker's set is **prefix-closed**: a block shows only while its
parent does. Then, along a prompt, the sets only shrink, and where they change can be found by bisection: a prompt of
n blocks with k different sets costs O(k log n) look-ups in place of n.

Engines evict leaves first, so a block that goes while its children stay is rare. Those children are kept aside as
*hidden* blocks of that worker, and show again when their parent comes back.

The map holds one list per distinct block: ``[workers, parent, children]``. `workers` is a bit set, one bit per
:class:`~dynamo.protocols.addressing.WorkerKey`; `children` is None, one hash, or a set of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from dynamo.protocols.addressing import WorkerKey

__all__ = ["PrefixIndex"]

#: workers, parent, children: a list and not an object, because a prompt of 100k tokens makes thousands of them.
_Node: TypeAlias = "list[Any]"
_WORKERS, _PARENT, _CHILDREN = 0, 1, 2


class PrefixIndex:
    """Blocks of one model and block size.

    With `max_blocks`, storing beyond it evicts the blocks that were stored first and have no children; the index then
    says less than the workers hold, never more.
    """

    def __init__(self, max_blocks: int | None = None) -> None:
        self._nodes: dict[int, _Node] = {}
        self._max_blocks = max_blocks
        self._bits: dict[WorkerKey, int] = {}
        self._keys: dict[int, WorkerKey] = {}
        self._free_bits: list[int] = []
        self._hidden: dict[int, dict[int, int | None]] = {}
        self._counts: dict[int, int] = {}
        self.evicted_blocks = 0

    def __len__(self) -> int:
        """Distinct blocks that show for at least one worker."""
        return len(self._nodes)

    def workers(self) -> list[WorkerKey]:
        """Workers that were ever stored and not removed."""
        return list(self._bits)

    def blocks_of(self, worker: WorkerKey) -> int:
        """How many blocks show for `worker`."""
        return self._counts.get(self._bits.get(worker, -1), 0)

    def store(self, worker: WorkerKey, hashes: Sequence[int], parent: int | None = None) -> None:
        """`worker` holds `hashes`, each the child of the one before, the first of `parent` (None: of nothing)."""
        bit = self._bit(worker)
        nodes = self._nodes
        if parent is not None:
            above = nodes.get(parent)
            if above is None or not above[_WORKERS] & bit:
                self._hide(bit, hashes, parent)
                return
        added = 0
        for sequence_hash in hashes:
            node = nodes.get(sequence_hash)
            if node is None:
                nodes[sequence_hash] = [bit, parent, None]
                added += 1
                if parent is not None:
                    _adopt(nodes[parent], sequence_hash)
            elif not node[_WORKERS] & bit:
                node[_WORKERS] |= bit
                added += 1
            parent = sequence_hash
        self._counts[bit] += added
        if bit in self._hidden:
            self._show(bit, hashes)
        if self._max_blocks is not None and len(nodes) > self._max_blocks:
            self._evict(len(nodes) - self._max_blocks)

    def remove(self, worker: WorkerKey, hashes: Iterable[int]) -> int:
        """`worker` holds `hashes` no more; how many of them were not known. What hangs below them is hidden."""
        bit = self._bits.get(worker)
        if bit is None:
            return sum(1 for _ in hashes)
        unknown = 0
        hidden = self._hidden.get(bit)
        for sequence_hash in hashes:
            node = self._nodes.get(sequence_hash)
            if node is not None and node[_WORKERS] & bit:
                children = node[_CHILDREN]
                self._drop(bit, sequence_hash, node)
                if children is not None:
                    self._hide_below(bit, sequence_hash, children)
                    hidden = self._hidden.get(bit)
            elif hidden is None or hidden.pop(sequence_hash, _ABSENT) is _ABSENT:
                unknown += 1
        return unknown

    def clear(self, worker: WorkerKey) -> None:
        """`worker` holds nothing."""
        bit = self._bits.get(worker)
        if bit is None:
            return
        self._hidden.pop(bit, None)
        if not self._counts.get(bit):
            return
        nodes = self._nodes
        for sequence_hash in [h for h, node in nodes.items() if node[_WORKERS] & bit]:
            self._drop(bit, sequence_hash, nodes[sequence_hash])
        self._counts[bit] = 0

    def remove_worker(self, worker: WorkerKey) -> None:
        """Forget `worker`; its place is used again."""
        bit = self._bits.get(worker)
        if bit is None:
            return
        self.clear(worker)
        del self._bits[worker], self._keys[bit], self._counts[bit]
        self._free_bits.append(bit)

    def match(self, hashes: Sequence[int]) -> dict[WorkerKey, int]:
        """For each worker that holds any of it, how many blocks of the prefix `hashes` it holds."""
        nodes = self._nodes
        last = len(hashes) - 1
        if last < 0 or (first := nodes.get(hashes[0])) is None:
            return {}
        found: dict[WorkerKey, int] = {}
        current = first[_WORKERS]
        low = 0
        while True:
            low = _last_with(nodes, hashes, current, low, last)
            following = 0
            if low < last:
                node = nodes.get(hashes[low + 1])
                following = node[_WORKERS] & current if node is not None else 0
            self._report(current & ~following, low + 1, found)
            if not following:
                return found
            current = following
            low += 1

    def _report(self, gone: int, blocks: int, found: dict[WorkerKey, int]) -> None:
        keys = self._keys
        while gone:
            bit = gone & -gone
            found[keys[bit]] = blocks
            gone ^= bit

    def _bit(self, worker: WorkerKey) -> int:
        bit = self._bits.get(worker)
        if bit is None:
            bit = self._free_bits.pop() if self._free_bits else 1 << len(self._bits)
            self._bits[worker] = bit
            self._keys[bit] = worker
            self._counts[bit] = 0
        return bit

    def _drop(self, bit: int, sequence_hash: int, node: _Node) -> None:
        """Take the worker out of a node, and the node out of the map when it was the last one."""
        node[_WORKERS] &= ~bit
        self._counts[bit] -= 1
        if node[_WORKERS]:
            return
        del self._nodes[sequence_hash]
        parent = node[_PARENT]
        above = self._nodes.get(parent) if parent is not None else None
        if above is not None:
            _disown(above, sequence_hash)

    def _hide(self, bit: int, hashes: Sequence[int], parent: int | None) -> None:
        hidden = self._hidden.setdefault(bit, {})
        for sequence_hash in hashes:
            hidden[sequence_hash] = parent
            parent = sequence_hash

    def _hide_below(self, bit: int, parent: int, children: int | set[int]) -> None:
        """The worker lost `parent`: what it has below is hidden."""
        stack = [(parent, child) for child in ([children] if isinstance(children, int) else list(children))]
        while stack:
            above, sequence_hash = stack.pop()
            node = self._nodes.get(sequence_hash)
            if node is None or not node[_WORKERS] & bit:
                continue
            below = node[_CHILDREN]
            self._drop(bit, sequence_hash, node)
            self._hidden.setdefault(bit, {})[sequence_hash] = above
            if below is not None:
                stack += [(sequence_hash, child) for child in ([below] if isinstance(below, int) else below)]

    def _show(self, bit: int, hashes: Sequence[int]) -> None:
        """Some of the worker's hidden blocks may hang below `hashes`, which show now."""
        hidden = self._hidden[bit]
        for sequence_hash in hashes:
            hidden.pop(sequence_hash, None)
        children: dict[int, list[int]] = {}
        for child, parent in hidden.items():
            if parent is not None:
                children.setdefault(parent, []).append(child)
        stack = [(h, child) for h in hashes for child in children.get(h, ())]
        while stack:
            parent, child = stack.pop()
            hidden.pop(child, None)
            node = self._nodes.get(child)
            if node is None:
                self._nodes[child] = [bit, parent, None]
                _adopt(self._nodes[parent], child)
                self._counts[bit] += 1
            elif not node[_WORKERS] & bit:
                node[_WORKERS] |= bit
                self._counts[bit] += 1
            stack += [(child, below) for below in children.get(child, ())]
        if not hidden:
            del self._hidden[bit]

    def _evict(self, surplus: int) -> None:
        """Drop old leaves; a chain becomes evictable from its end."""
        leaves = [h for h, node in self._nodes.items() if node[_CHILDREN] is None][: surplus + surplus // 2 + 64]
        for sequence_hash in leaves:
            current: int | None = sequence_hash
            while current is not None and surplus > 0:
                node = self._nodes.get(current)
                if node is None or node[_CHILDREN] is not None:
                    break
                parent = node[_PARENT]
                workers = node[_WORKERS]
                while workers:
                    bit = workers & -workers
                    workers ^= bit
                    self._drop(bit, current, node)
                surplus -= 1
                self.evicted_blocks += 1
                current = parent


_ABSENT = object()


def _adopt(parent: _Node, child: int) -> None:
    children = parent[_CHILDREN]
    if children is None:
        parent[_CHILDREN] = child
    elif isinstance(children, int):
        parent[_CHILDREN] = {children, child}
    else:
        children.add(child)


def _disown(parent: _Node, child: int) -> None:
    children = parent[_CHILDREN]
    if children == child:
        parent[_CHILDREN] = None
    elif isinstance(children, set):
        children.discard(child)
        if not children:
            parent[_CHILDREN] = None


def _last_with(nodes: dict[int, _Node], hashes: Sequence[int], workers: int, low: int, last: int) -> int:
    """The last index at which all of `workers` show, by galloping from `low`, where they do."""
    step = 1
    high = low
    while high < last:
        probe = min(low + step, last)
        node = nodes.get(hashes[probe])
        if node is None or node[_WORKERS] & workers != workers:
            high = probe
            break
        low = high = probe
        step *= 2
    else:
        return low
    while high - low > 1:
        middle = (low + high) // 2
        node = nodes.get(hashes[middle])
        if node is not None and node[_WORKERS] & workers == workers:
            low = middle
        else:
            high = middle
    return low
