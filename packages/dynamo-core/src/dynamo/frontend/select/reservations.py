"""What was reserved and has not ended: a route per reservation, ended at the latest when its time is up."""

from __future__ import annotations

import heapq

from dynamo.errors import InvalidRequest, Overloaded
from dynamo.router.route import Route

__all__ = ["Reservation", "Reservations", "UnknownReservation"]


class UnknownReservation(InvalidRequest):
    """No such reservation is open, or it is another key's."""

    code = "reservation_not_found"
    http_status = 404


class ReservationExists(InvalidRequest):
    """The client gave an id that is in use."""

    code = "reservation_exists"
    http_status = 409


class Reservation:
    """One of them."""

    __slots__ = ("expires", "owner", "route")

    def __init__(self, route: Route, owner: str, expires: float) -> None:
        self.route = route
        self.owner = owner
        """Name of the API key that made it."""
        self.expires = expires


class Reservations:
    """All open ones, by id. `now` is any monotonic clock, in seconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[str, Reservation] = {}
        self._by_expiry: list[tuple[float, str]] = []
        self.expired = 0

    def __len__(self) -> int:
        return len(self._open)

    def check(self, reservation_id: str) -> None:
        """Whether one more may be made under this id.

        Raises:
            ReservationExists: the id is in use.
            Overloaded: there are as many as there may be.
        """
        if reservation_id in self._open:
            raise ReservationExists(f"reservation {reservation_id!r} is open already", param="reservation_id")
        if len(self._open) >= self._limit:
            raise Overloaded(f"{self._limit} reservations are open, the most there may be", retry_after_seconds=1)

    def add(self, reservation_id: str, reservation: Reservation) -> None:
        """Keep one until it is ended or expires."""
        self._open[reservation_id] = reservation
        heapq.heappush(self._by_expiry, (reservation.expires, reservation_id))

    def get(self, reservation_id: str, owner: str) -> Reservation:
        """Raises UnknownReservation when `owner` has none of this id."""
        found = self._open.get(reservation_id)
        if found is None or found.owner != owner:
            raise UnknownReservation(
                f"no reservation {reservation_id!r} is open", hint="it was ended, or its time was up"
            )
        return found

    def end(self, reservation_id: str, owner: str) -> None:
        """The request is over.

        Raises:
            UnknownReservation: `owner` has none of this id.
        """
        self.get(reservation_id, owner).route.end()
        del self._open[reservation_id]
        if len(self._by_expiry) > 2 * len(self._open) + 64:
            self._by_expiry = [(reservation.expires, name) for name, reservation in self._open.items()]
            heapq.heapify(self._by_expiry)

    def expire(self, now: float) -> None:
        """End those whose time is up."""
        while self._by_expiry and self._by_expiry[0][0] <= now:
            expires, name = heapq.heappop(self._by_expiry)
            found = self._open.get(name)
            # An id may have been used again since.
            if found is not None and found.expires == expires:
                found.route.end()
                del self._open[name]
                self.expired += 1
