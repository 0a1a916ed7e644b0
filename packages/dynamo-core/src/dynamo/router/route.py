"""A request on its way at one worker: what the frontend holds from the decision to the end of the stream."""

from __future__ import annotations

from typing import Protocol

from dynamo.errors import DynamoError
from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.router.core.active_sequences import Booking
from dynamo.router.regret import PendingTtft
from dynamo.router.worker import Candidate

__all__ = ["Route", "RouteWatch"]


class RouteWatch(Protocol):
    """Who must know what becomes of routes. Each method is called at most once per route."""

    def prompt_computed(self, number: int) -> None:
        """The worker sent something."""
        ...

    def route_ended(self, number: int) -> None:
        """The request is over."""
        ...


class Route:
    """Made by `CandidateTable.route`; :meth:`end` must follow. All methods may be called more than once."""

    __slots__ = ("_answered", "_booking", "_candidate", "_number", "_open", "_probe", "_watch", "ttft")

    def __init__(
        self,
        candidate: Candidate,
        booking: Booking | None,
        ttft: PendingTtft | None = None,
        *,
        watch: RouteWatch | None = None,
        number: int = 0,
    ) -> None:
        """`number` is what `watch` calls this route."""
        self._watch = watch
        self._number = number
        self._candidate = candidate
        self._booking = booking
        self.ttft = ttft
        """What becomes of the decision; None where workers are not measured."""
        self._answered = False
        self._open = True
        self._probe = candidate.sent()

    @property
    def worker(self) -> WorkerKey:
        """Where it goes."""
        return self._candidate.key

    @property
    def record(self) -> InstanceRecord:
        """The worker's discovery record."""
        return self._candidate.record

    def answered(self, now: float | None = None) -> None:
        """The worker sent something: it is well, and the prompt is computed. `now` is the clock of the decision."""
        if not self._answered:
            self._answered = True
            self._candidate.breaker.succeeded()
            if self._booking is not None:
                self._booking.prefill_done()
            if self._watch is not None:
                self._watch.prompt_computed(self._number)
            if self.ttft is not None and now is not None:
                self.ttft.first_token(now)

    def failed(self, error: DynamoError, now: float) -> None:
        """It failed; :meth:`end` is still due."""
        self._candidate.failed(error, now, self._probe)

    def end(self) -> None:
        """It is over, however."""
        if self._open:
            self._open = False
            self._candidate.ended(self._probe)
            if self._booking is not None:
                self._booking.end()
            if self._watch is not None:
                self._watch.route_ended(self._number)
