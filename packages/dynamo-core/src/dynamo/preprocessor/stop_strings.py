"""Finds stop strings in a stream of text and says how much of the text is safe to send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dynamo.errors import InvalidRequest

__all__ = ["StopMatch", "StopStrings"]

#: Clients choose stop strings: held text is compared with each of them, so both are bounded.
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 4096


class StopMatch(NamedTuple):
    """Where a stop string lies in the text that was searched."""

    start: int
    end: int
    stop: str


class StopStrings:
    """A set of stop strings. Immutable; one may serve many streams.

    The match that *ends* first wins, and of those that end together the longest: of ``abcd`` and ``bc`` it is ``bc``
    that stops ``abcd``. This is the only rule that needs no text beyond the match, so that the result does not depend
    on how the text is cut into tokens.
    """

    __slots__ = ("_holding", "_longest", "stops")

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises InvalidRequest when there are too many, too long or empty ones."""
        self.stops = tuple(dict.fromkeys(stops))
        if len(self.stops) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"{len(self.stops)} stop strings; the limit is {MAX_STOP_STRINGS}", param="stop")
        if not all(self.stops):
            raise InvalidRequest("a stop string must not be empty", param="stop")
        if sum(map(len, self.stops)) > MAX_STOP_CHARACTERS:
            raise InvalidRequest(f"stop strings have more than {MAX_STOP_CHARACTERS} characters", param="stop")
        self._longest = max(map(len, self.stops), default=0)
        # Text can only be the beginning of a stop string if its last character occurs in one before its end.
        self._holding = frozenset("".join(stop[:-1] for stop in self.stops))

    def search(self, text: str) -> StopMatch | None:
        """The match that ends first."""
        best: StopMatch | None = None
        for stop in self.stops:
            start = text.find(stop) if best is None else text.find(stop, 0, best.end)
            if start >= 0:
                match = StopMatch(start, start + len(stop), stop)
                if best is None or (match.end, match.start) < (best.end, best.start):
                    best = match
        return best

    def held(self, text: str) -> int:
        """Length of the longest end of `text` that may become a stop string."""
        if text[-1:] not in self._holding:
            return 0
        size = len(text)
        for start in range(max(0, size - self._longest + 1), size):
            end = text[start:]
            if any(stop.startswith(end) for stop in self.stops):
                return size - start
        return 0
