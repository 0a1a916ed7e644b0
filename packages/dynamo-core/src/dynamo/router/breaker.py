"""Circuit breaking: a worker that keeps failing is left alone for a while, then tried with one request at a time."""

from __future__ import annotations

__all__ = ["CircuitBreaker"]

#: Failures in a row that open the circuit.
FAILURES_TO_OPEN = 3
#: First pause; it doubles with every probe that fails.
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0


class CircuitBreaker:
    """State of one worker: closed (all requests), open (none), half open (one probe). `now` is any monotonic clock."""

    __slots__ = ("_failures", "_open_until", "_pause", "_probing", "closed")

    def __init__(self) -> None:
        self.closed = True
        """Whether the worker is in ordinary use."""
        self._failures = 0
        self._open_until = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._probing = False

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return self.closed or (now >= self._open_until and not self._probing)

    def sent(self) -> None:
        """A request was sent; in an open circuit it is the probe."""
        if not self.closed:
            self._probing = True

    def ended(self) -> None:
        """A request is over. A probe may end without a verdict (cancelled, refused): the next request is one again."""
        self._probing = False

    def succeeded(self) -> None:
        """An answer arrived: the worker is well again."""
        self.closed = True
        self._failures = 0
        self._pause = FIRST_PAUSE_SECONDS
        self._probing = False

    def failed(self, now: float, *, unreachable: bool = False) -> None:
        """A request failed for a reason that lies with the worker; one that cannot even be reached is left at once."""
        was_closed = self.closed
        self._failures = max(self._failures + 1, FAILURES_TO_OPEN if unreachable else 0)
        self.closed = self._failures < FAILURES_TO_OPEN
        if self.closed:
            return
        if not (was_closed or self._probing):
            return  # all streams of a lost connection fail at once; that is one reason to pause, not fifty
        if self._probing:
            self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        self._probing = False
        self._open_until = now + self._pause
