"""Which blocks the running requests of one worker hold, by the prompts that they began with.

`ActiveSequences` keeps one. Requests hold whole prefixes, so it keeps runs of blocks that the same requests hold, each
behind the run before it, and finds them by few of their blocks: a prompt of 6,000 blocks costs as much as 150 would.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["HeldPrefixes", "Run"]

#: A run is found by its first block, and by its marks: blocks whose place in the prompt is a multiple of a step. With
#: 16, asking 64 busy workers takes 7 us longer.
_STEP = 8
#: Prompts that end here have these marks alone.
_FINE_BLOCKS = 512
#: Behind them marks are sparser: (from which place on, step, marks before).
_COARSE = ((512, 64, 64), (4096, 512, 120))


class Run:
    """The blocks ``hashes[start:end]`` of every prompt that goes through here, behind those of `parent`."""

    __slots__ = ("end", "hashes", "holders", "parent", "start")

    def __init__(self, hashes: Sequence[int], start: int, end: int, parent: Run | None, holders: int) -> None:
        self.hashes = hashes
        self.start = start
        self.end = end
        self.parent = parent
        self.holders = holders
        """Requests that hold it."""

    def marks(self) -> list[int]:
        """The blocks that it is found by."""
        hashes, start = self.hashes, self.start
        marks = [] if start == _mark_before(start) else [hashes[start]]
        marks += hashes[-(-start // _STEP) * _STEP : min(self.end, _FINE_BLOCKS) : _STEP]
        if self.end > _FINE_BLOCKS:
            (begin, step, _), (end, last_step, _) = _COARSE
            marks += hashes[-(-max(start, begin) // step) * step : min(self.end, end) : step]
            marks += hashes[-(-max(start, end) // last_step) * last_step : self.end : last_step]
        return marks


class HeldPrefixes:
    """Prompts as sequences of sequence hashes; two with the same hash in the same place agree up to there.

    Where hashes collide, what is shared may be found too small or too large; the number of blocks stays that of the
    runs.
    """

    def __init__(self) -> None:
        self._marked: dict[int, Run] = {}
        self._blocks = 0

    def __len__(self) -> int:
        """Distinct blocks that are held."""
        return self._blocks

    def add(self, hashes: Sequence[int]) -> Run | None:
        """One more request holds these blocks, until :meth:`remove` of what this returns; which must not change."""
        run, shared = self._find(hashes)
        if run is not None and shared < run.end:
            run = self._split(run, shared)
        if shared < len(hashes):
            run = Run(hashes, shared, len(hashes), run, 0)
            self._blocks += run.end - run.start
            self._mark(run)
        last = run
        while run is not None:
            run.holders += 1
            run = run.parent
        return last

    def remove(self, run: Run | None) -> None:
        """A request that got `run` from :meth:`add` is over; call it once."""
        marked = self._marked
        while run is not None:
            run.holders -= 1
            if not run.holders:
                self._blocks -= run.end - run.start
                for mark in run.marks():
                    if marked.get(mark) is run:
                        del marked[mark]
            run = run.parent

    def shared(self, hashes: Sequence[int], likely: int = 0) -> int:
        """How many blocks of the prompt `hashes` are held; `likely` is tried first."""
        marked = self._marked
        if 0 < likely < len(hashes):
            # A router asks this of every worker for every request, and mostly knows the answer.
            last = likely - 1
            run = marked.get(hashes[last - last % _STEP if last < _FINE_BLOCKS else _mark_before(last)])
            while run is not None and run.end <= last:
                end, run = run.end, marked.get(hashes[run.end])
                if run is not None and run.start != end:
                    run = None
            if run is not None and run.start <= last and run.hashes[last] == hashes[last]:
                here = hashes[likely]
                if run.hashes[likely] != here if likely < run.end else here not in marked:
                    return likely
        return self._find(hashes)[1]

    def _find(self, hashes: Sequence[int]) -> tuple[Run | None, int]:
        """The last run that the prompt goes through, and how many blocks of the prompt are held."""
        marked = self._marked
        if not hashes or hashes[0] not in marked:
            return None, 0
        low, high = 0, _marks_before(len(hashes))
        while high - low > 1:
            middle = (low + high) >> 1
            if hashes[middle * _STEP if middle * _STEP < _FINE_BLOCKS else _mark(middle)] in marked:
                low = middle
            else:
                high = middle
        shared = _mark(low)
        run = marked[hashes[shared]]
        if not run.start <= shared < run.end or run.hashes[shared] != hashes[shared]:
            return None, 0  # another prompt's block of the same name
        while True:
            shared = _agreement(run, hashes, shared)
            if shared < run.end or shared == len(hashes):
                return run, shared
            following = marked.get(hashes[shared])
            if following is None or following.parent is not run or following.hashes[shared] != hashes[shared]:
                return run, shared
            run = following

    def _split(self, run: Run, at: int) -> Run:
        """Cut `run` in two; returns the first part. Who holds `run` goes on holding the second by it."""
        first = Run(run.hashes, run.start, at, run.parent, run.holders)
        run.start, run.parent = at, first
        self._mark(first)
        self._mark(run)
        return first

    def _mark(self, run: Run) -> None:
        self._marked.update(dict.fromkeys(run.marks(), run))


def _mark_before(place: int) -> int:
    """The last mark up to `place`."""
    if place < _FINE_BLOCKS:
        return place - place % _STEP
    return place - place % next(step for begin, step, _ in reversed(_COARSE) if place >= begin)


def _mark(number: int) -> int:
    """The place of a mark."""
    for begin, step, before in reversed(_COARSE):
        if number >= before:
            return begin + (number - before) * step
    return number * _STEP


def _marks_before(place: int) -> int:
    """How many marks are before `place`."""
    for begin, step, before in reversed(_COARSE):
        if place > begin:
            return before + (place - 1 - begin) // step + 1
    return (place - 1) // _STEP + 1


def _agreement(run: Run, hashes: Sequence[int], low: int) -> int:
    """Up to where `run` and the prompt agree, which they do at `low`."""
    mine = run.hashes
    high = min(run.end, len(hashes))
    if mine[high - 1] == hashes[high - 1]:
        return high
    while high - low > 1:
        middle = (low + high) >> 1
        if mine[middle] == hashes[middle]:
            low = middle
        else:
            high = middle
    return high
