"""A request on its way at one worker: what the frontend holds from the decision to the end of the stream."""

from __future__ import annotations

from dynamo.errors import DynamoError
from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.router.core.active_sequences import Booking
from dynamo.router.worker import Candidate

__all__ = ["Route"]


class Route:
    """Made by `CandidateTable.route`; :meth:`end` must follow. All methods may be called more than once."""

    __slots__ = ("_answered", "_booking", "_candidate", "_open")

    def __init__(self, candidate: Candidate, booking: Booking | None) -> None:
        self._candidate = candidate
        self._booking = booking
        self._answered = False
        self._open = True
        candidate.sent()

    @property
    def worker(self) -> WorkerKey:
        """Where it goes."""
        return self._candidate.key

    @property
    def record(self) -> InstanceRecord:
        """The worker's discovery record."""
        return self._candidate.record

    def answered(self) -> None:
        """The worker sent something: it is well, and the prompt is computed."""
        if not self._answered:
            self._answered = True
            self._candidate.breaker.succeeded()
            if self._booking is not None:
                self._booking.prefill_done()

    def failed(self, error: DynamoError, now: float) -> None:
        """It failed; :meth:`end` is still due."""
        self._candidate.failed(error, now)

    def end(self) -> None:
        """It is over, however."""
        if self._open:
            self._open = False
            self._candidate.ended()
            if self._booking is not None:
                self._booking.end()
