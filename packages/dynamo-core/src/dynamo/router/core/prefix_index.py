"""Who holds which prefix: a flat map from sequence hash to a set of workers, searched without looking at every block.

A sequence hash names a block *and* everything before it, so the longest cached prefix of a prompt is the last of
its hashes that a worker has, provided that each worker's set is **prefix-closed**: a block shows only while its
parent does. Then, along a prompt, the sets only shrink, and the last block that anybody holds is found by bisection.

Blocks that were stored one after the other and that the same workers hold share one *run*: the map leads from each of
their hashes to it, and the set of workers is kept once. A run is cut where the sets begin to differ. From the last
run of a prompt we go back to where more workers join, by leaps: each run knows one far before it (E. Myers, "An
applicative random-access stack", 1983). With n blocks in r runs and k different sets, that is O(log n + k log r).

Engines evict leaves first, so a block that goes while its children stay is rare. Those children are kept aside as
hidden blocks of that worker, and show again when their parent comes back.

A worker is a small number here (`dynamo.router.slots`): its place in the bit sets.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from dynamo.router.core.hidden_blocks import HiddenBlocks

__all__ = ["PrefixIndex"]

#: Longer runs would make cutting them slow: what is behind the cut is entered again.
_LONGEST_RUN_BLOCKS = 64
#: Hidden blocks that are kept of one worker.
_HIDDEN_BLOCKS = 1 << 16
#: Sets of workers whose members are remembered; few different ones occur at a time.
_REMEMBERED_SETS = 4096
#: When full, this part of the index is evicted at once: choosing what to evict looks at every run.
_EVICTED_PART = 16


class _Run:
    """Consecutive blocks with one set of workers. `parent` is the block before the first."""

    __slots__ = ("depth", "hashes", "leap", "level", "parent", "stored", "workers")

    def __init__(
        self, workers: int, parent: int | None, hashes: list[int], stored: int, above: _Run | None, depth: int
    ) -> None:
        """`above` is the run of `parent`, and `depth` the number of blocks before the first."""
        self.workers = workers
        self.parent = parent
        self.hashes = hashes
        self.stored = stored
        self.depth = depth
        self.level = 0
        """Runs before this one when it was made; how far its leap goes follows from that."""
        self.leap: _Run = self
        """A run before this one, so chosen that few leaps and steps lead from anywhere to any of them."""
        if above is not None:
            level, leap = above.level, above.leap
            self.level = level + 1
            self.leap = leap.leap if level - leap.level == leap.level - leap.leap.level else above


#: Before the first run of every prompt; nobody's.
_START = _Run(0, None, [], 0, None, 0)


class PrefixIndex:
    """Blocks of one model and block size.

    With `max_blocks`, storing beyond it evicts what was stored longest ago, from the ends of prefixes; the index then
    says less than the workers hold, never more.
    """

    def __init__(self, max_blocks: int | None = None) -> None:
        self._runs: dict[int | None, _Run] = {}
        self._below: dict[int | None, set[_Run]] = {}
        self._hidden: dict[int, HiddenBlocks] = {}
        self._counts: defaultdict[int, int] = defaultdict(int)
        self._members: dict[int, tuple[int, ...]] = {}
        self._max_blocks = sys.maxsize if max_blocks is None else max_blocks
        self._clock = 0
        self.evicted_blocks = 0
        self.conflicts = 0
        """Stored blocks that were refused: their hash is known with another parent."""

    def __len__(self) -> int:
        """Distinct blocks that show for at least one worker."""
        return len(self._runs)

    def blocks_of(self, worker: int) -> int:
        """How many blocks show for `worker`."""
        return self._counts.get(worker, 0)

    def hidden_blocks_of(self, worker: int) -> int:
        """How many blocks of `worker` wait for a block before them."""
        return len(self._hidden.get(worker, ()))

    def store(self, worker: int, hashes: list[int], parent: int | None = None) -> None:
        """`worker` holds `hashes`, each the child of the one before, the first of `parent` (None: of nothing)."""
        if not hashes:
            return
        runs = self._runs
        bit = 1 << worker
        self._clock += 1
        above = None
        if parent is not None:
            above = runs.get(parent)
            if above is None or not above.workers & bit:
                self._hidden_of(worker).add(hashes, parent)
                return
        run = runs.get(hashes[0])
        if run is None:
            added = self._enter_new(bit, hashes, parent, above)
        elif run.parent == parent and run.hashes == hashes:
            # Somebody stored the same blocks at once: the usual case.
            added = 0 if run.workers & bit else len(hashes)
            run.workers |= bit
            run.stored = self._clock
        else:
            added = self._enter(bit, hashes, parent)
        self._counts[worker] += added
        if self._hidden and worker in self._hidden:
            self._show(worker, hashes)
        if len(runs) > self._max_blocks:
            self._evict(len(runs) - self._max_blocks + self._max_blocks // _EVICTED_PART)

    def remove(self, worker: int, hashes: Iterable[int]) -> int:
        """`worker` holds `hashes` no more; how many of them were not known. What hangs below them is hidden."""
        bit = 1 << worker
        unknown = 0
        for sequence_hash in hashes:
            run = self._runs.get(sequence_hash)
            if run is not None and run.workers & bit:
                self._take_out(worker, run, sequence_hash)
            elif worker not in self._hidden or not self._hidden[worker].discard(sequence_hash):
                unknown += 1
        return unknown

    def clear(self, worker: int) -> None:
        """`worker` holds nothing. Looks at every run once."""
        bit = 1 << worker
        self._hidden.pop(worker, None)
        if self._counts.pop(worker, 0):
            for run in [run for run in self._all_runs() if run.workers & bit]:
                self._lose(bit, run)

    def match(self, hashes: Sequence[int]) -> dict[int, int]:
        """For each worker that holds any of it, how many blocks of the prefix `hashes` it holds."""
        last, run = self._last_held(hashes)
        if run is None:
            return {}
        find, members = self._runs.get, self._members
        current = run.workers
        found = dict.fromkeys(self._members_of(current), last + 1)
        while (above := find(run.parent)) is not None:
            if above.workers != current:
                joining = above.workers ^ current
                for worker in members.get(joining) or self._members_of(joining):
                    found[worker] = run.depth
                current = above.workers
            else:  # past what the same workers hold
                while (leap := above.leap).workers == current:
                    above = leap
            run = above
        return found

    def content(self) -> Iterator[tuple[int, list[int], int | None]]:
        """All blocks, as arguments of :meth:`store`, hidden ones last. Slow: for making another index."""
        runs = list(self._below.get(None, ()))
        while runs:
            run = runs.pop()
            for worker in self._members_of(run.workers):
                yield worker, list(run.hashes), run.parent
            for sequence_hash in run.hashes:
                runs += self._below.get(sequence_hash, ())
        for worker, hidden in self._hidden.items():
            for sequence_hash, parent in hidden:
                yield worker, [sequence_hash], parent

    def _last_held(self, hashes: Sequence[int]) -> tuple[int, _Run | None]:
        """Place and run of the last block of the prefix `hashes` that somebody holds; -1 and None where nobody does."""
        runs = self._runs
        if not hashes or hashes[0] not in runs:
            return -1, None
        low, high = 0, len(hashes)
        middle = high - 1
        while high - low > 1:
            if hashes[middle] in runs:
                low = middle
            else:
                high = middle
            middle = (low + high) >> 1
        run = runs[hashes[low]]
        place = low - run.depth
        if 0 <= place < len(run.hashes) and run.hashes[place] == hashes[low]:
            return low, run
        return -1, None  # somebody claimed to hold it behind another prefix

    def _hidden_of(self, worker: int) -> HiddenBlocks:
        hidden = self._hidden.get(worker)
        if hidden is None:
            hidden = self._hidden[worker] = HiddenBlocks(_HIDDEN_BLOCKS)
        return hidden

    def _members_of(self, workers: int) -> tuple[int, ...]:
        members = self._members.get(workers)
        if members is None:
            if len(self._members) >= _REMEMBERED_SETS:
                self._members.clear()
            members = self._members[workers] = tuple(_bits(workers))
        return members

    def _all_runs(self) -> Iterator[_Run]:
        return itertools.chain.from_iterable(self._below.values())

    def _enter_new(self, bit: int, hashes: list[int], parent: int | None, above: _Run | None) -> int:
        """Enter blocks of which nobody holds the first; how many were new. `above` is the run of `parent`."""
        if (
            above is not None
            and above.workers == bit
            and above.hashes[-1] == parent
            and len(above.hashes) < _LONGEST_RUN_BLOCKS
            and parent not in self._below
        ):
            run = above
            run.stored = self._clock
        else:
            run = _Run(bit, parent, [], self._clock, above or _START, _depth_behind(parent, above))
            self._link(run)
        runs = self._runs
        before = len(runs)
        # One look-up per block, for asking and entering.
        enter = runs.setdefault
        entered = hashes
        for sequence_hash in hashes:
            if enter(sequence_hash, run) is not run:
                entered = hashes[: hashes.index(sequence_hash)]
                break
        added = len(runs) - before
        if added == len(entered):
            run.hashes += entered
        else:  # something was said twice
            run.hashes = list(dict.fromkeys([*run.hashes, *entered]))
        if len(entered) < len(hashes):
            added += self._enter(bit, hashes[len(entered) :], entered[-1])
        return added

    def _enter(self, bit: int, hashes: list[int], parent: int | None) -> int:
        """Enter blocks some of which others hold, or this worker holds already; how many were new to it."""
        added = start = 0
        while start < len(hashes):
            run = self._runs.get(hashes[start])
            if run is None:
                above = self._runs.get(parent) if parent is not None else None
                return added + self._enter_new(bit, hashes[start:], parent, above)
            begin = 0 if run.hashes[0] == hashes[start] else run.hashes.index(hashes[start])
            if (run.hashes[begin - 1] if begin else run.parent) != parent:
                self.conflicts += len(hashes) - start
                return added
            end = start + _common(run.hashes, begin, hashes, start)
            if not run.workers & bit:
                # The worker holds the parent and not this block, so the run begins here.
                if end - start < len(run.hashes):
                    self._cut(run, end - start)
                run.workers |= bit
                added += end - start
            run.stored = self._clock
            parent = hashes[end - 1]
            start = end
        return added

    def _take_out(self, worker: int, run: _Run, sequence_hash: int) -> None:
        """The worker lost one block: what it has below is hidden."""
        bit = 1 << worker
        stack = [(run, len(run.hashes) - 1 if run.hashes[-1] == sequence_hash else run.hashes.index(sequence_hash))]
        lost: list[_Run] = []
        while stack:
            run, begin = stack.pop()
            if begin:
                run = self._cut(run, begin)
            lost.append(run)
            for block in run.hashes:
                stack += [(child, 0) for child in self._below.get(block, ()) if child.workers & bit]
        for run in lost:
            first = 1 if run.hashes[0] == sequence_hash else 0
            if first < len(run.hashes):
                parent = run.hashes[0] if first else run.parent
                assert parent is not None
                self._hidden_of(worker).add(run.hashes[first:], parent)
            self._counts[worker] -= len(run.hashes)
            self._lose(bit, run)

    def _lose(self, bit: int, run: _Run) -> None:
        """One worker less; the last one takes the run with it."""
        run.workers &= ~bit
        if not run.workers:
            self._drop(run)

    def _drop(self, run: _Run) -> None:
        for sequence_hash in run.hashes:
            del self._runs[sequence_hash]
        siblings = self._below[run.parent]
        siblings.discard(run)
        if not siblings:
            del self._below[run.parent]

    def _cut(self, run: _Run, length: int) -> _Run:
        """Shorten `run` to `length` blocks; the new run of what follows."""
        rest = _Run(run.workers, run.hashes[length - 1], run.hashes[length:], run.stored, run, run.depth + length)
        del run.hashes[length:]
        self._runs.update(dict.fromkeys(rest.hashes, rest))
        self._link(rest)
        return rest

    def _link(self, run: _Run) -> None:
        siblings = self._below.get(run.parent)
        if siblings is None:
            self._below[run.parent] = {run}
        else:
            siblings.add(run)

    def _show(self, worker: int, hashes: list[int]) -> None:
        """Some of the worker's hidden blocks may hang below `hashes`, which show now."""
        hidden = self._hidden[worker]
        for sequence_hash in hashes:
            hidden.discard(sequence_hash)
        shown = list(hashes)
        while shown and hidden:
            parent = shown.pop()
            above = self._runs.get(parent)
            if above is None or not above.workers >> worker & 1:
                continue  # refused: known with another parent
            for child in hidden.take_below(parent):
                self._counts[worker] += self._enter(1 << worker, [child], parent)
                shown.append(child)
        if not hidden:
            del self._hidden[worker]

    def _evict(self, surplus: int) -> None:
        """Drop whole runs that nothing hangs below, the longest unused first; a parent can follow its last child."""
        below = self._below
        number = itertools.count()
        leaves = [(run.stored, next(number), run) for run in self._all_runs() if below.keys().isdisjoint(run.hashes)]
        heapq.heapify(leaves)
        while leaves and surplus > 0:
            _, _, run = heapq.heappop(leaves)
            for worker in self._members_of(run.workers):
                self._counts[worker] -= len(run.hashes)
            surplus -= len(run.hashes)
            self.evicted_blocks += len(run.hashes)
            self._drop(run)
            above = self._runs.get(run.parent) if run.parent is not None else None
            if above is not None and below.keys().isdisjoint(above.hashes):
                heapq.heappush(leaves, (above.stored, next(number), above))


def _bits(workers: int) -> Iterator[int]:
    """The members of a bit set."""
    while workers:
        lowest = workers & -workers
        yield lowest.bit_length() - 1
        workers ^= lowest


def _depth_behind(parent: int | None, above: _Run | None) -> int:
    """Blocks up to `parent`, which is in the run `above`."""
    if parent is None or above is None:
        return 0
    hashes = above.hashes
    return above.depth + (len(hashes) if hashes[-1] == parent else hashes.index(parent) + 1)


def _common(run: list[int], begin: int, hashes: list[int], start: int) -> int:
    """How many blocks are the same from ``run[begin]`` and ``hashes[start]`` on; at least one."""
    length = min(len(run) - begin, len(hashes) - start)
    if run[begin : begin + length] == hashes[start : start + length]:
        return length
    return next(i for i in range(1, length) if run[begin + i] != hashes[start + i])
