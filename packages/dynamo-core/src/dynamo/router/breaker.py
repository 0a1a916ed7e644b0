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

    __slots__ = ("_failures", "_open_until", "_pause", "_probe", "_probes", "closed")

    def __init__(self) -> None:
        self.closed = True
        """Whether the worker is in ordinary use."""
        self._failures = 0
        self._open_until = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._probe = 0
        self._probes = 0

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return self.closed or (now >= self._open_until and not self._probe)

    def sent(self) -> int:
        """A request was sent. In an open circuit it is the probe, and this its number; else 0."""
        if self.closed:
            return 0
        self._probes += 1
        self._probe = self._probes
        return self._probe

    def ended(self, probe: int) -> None:
        """The request is over of which `sent` said `probe`.

        A probe may end without a verdict (cancelled, refused): the next request is one again.
        """
        if probe == self._probe:
            self._probe = 0

    def succeeded(self) -> None:
        """An answer arrived: the worker is well again."""
        self.closed = True
        self._failures = 0
        self._pause = FIRST_PAUSE_SECONDS
        self._probe = 0

    def failed(self, now: float, *, unreachable: bool = False, probe: int = 0) -> None:
        """A request failed for a reason that lies with the worker; one that cannot even be reached is left at once.

        `probe` is what `sent` said of it.
        """
        probing = probe != 0 and probe == self._probe
        was_closed = self.closed
        self._failures = max(self._failures + 1, FAILURES_TO_OPEN if unreachable else 0)
        self.closed = self._failures < FAILURES_TO_OPEN
        if self.closed:
            return
        if not (was_closed or probing):
            return  # all streams of a lost connection fail at once; that is one reason to pause, not fifty
        if probing:
            self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        self._probe = 0
        self._open_until = now + self._pause
