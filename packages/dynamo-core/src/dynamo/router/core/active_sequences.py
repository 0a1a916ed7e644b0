"""What one worker is busy with, from the moment a request is sent to it: booked load, corrected by what it publishes.

A worker's own report comes a quarter of a second late, in which a router sends it hundreds of requests; so the router
books what it sends, and what other routers say that they send (`dynamo.router.replica_sync`). What a report holds
beyond the bookings is the load of routers that say nothing, or output that has grown since: nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo.router.core.held_prefixes import HeldPrefixes, Run

__all__ = ["REPORT_LIFETIME_SECONDS", "ActiveSequences", "Booking"]

#: What a worker said of its load longer ago than this is not used; workers repeat theirs every 5 s.
REPORT_LIFETIME_SECONDS = 15.0


class Booking:
    """One request at one worker. All methods may be called at any time and more than once."""

    __slots__ = ("_held", "_owner", "_prefill_tokens", "_unnamed_blocks", "booked_at")

    def __init__(
        self, owner: ActiveSequences, prefill_tokens: int, held: Run | None, unnamed_blocks: int, now: float
    ) -> None:
        self._owner: ActiveSequences | None = owner
        self._prefill_tokens = prefill_tokens
        self._held = held
        self._unnamed_blocks = unnamed_blocks
        self.booked_at = now

    def prefill_done(self) -> None:
        """The first token came: the prompt is computed."""
        if self._owner is not None:
            self._owner.computed(self._prefill_tokens)
            self._prefill_tokens = 0

    def end(self) -> None:
        """The request is over, or nothing was heard of it for too long."""
        owner = self._owner
        if owner is not None:
            self.prefill_done()
            self._owner = None
            owner.release(self, self._held, self._unnamed_blocks)


class ActiveSequences:
    """Requests of one worker that have not ended. `now` is any monotonic clock, in seconds.

    Blocks that several requests share count once, as they do in the worker's cache.
    """

    def __init__(self, lifetime_seconds: float) -> None:
        """A booking that is not ended within `lifetime_seconds` is dropped by :meth:`expire`."""
        self._lifetime = lifetime_seconds
        self._open: dict[Booking, None] = {}
        self._blocks = HeldPrefixes()
        self._unnamed_blocks = 0
        self._booked_prefill_tokens = 0
        self._foreign_decode_blocks = 0
        self._reported_at: float | None = None
        self.prefill_tokens = 0
        """Prompt tokens that are to be computed, booked and foreign."""
        self.decode_blocks = 0
        """Distinct full blocks that requests hold, booked and foreign."""
        self.expired = 0

    def __len__(self) -> int:
        """Requests that are booked."""
        return len(self._open)

    def book(self, uncached_tokens: int, hashes: Sequence[int], now: float, *, unnamed_blocks: int = 0) -> Booking:
        """A request was sent: it has `uncached_tokens` to compute and its prompt is the blocks `hashes`.

        Of another router's request only the number of blocks that no other one holds is known: `unnamed_blocks`.
        """
        booking = Booking(self, uncached_tokens, self._blocks.add(hashes), unnamed_blocks, now)
        self._unnamed_blocks += unnamed_blocks
        self._open[booking] = None
        self._booked_prefill_tokens += uncached_tokens
        self.prefill_tokens += uncached_tokens
        self.decode_blocks = self._booked_blocks() + self._foreign_decode_blocks
        return booking

    def shared_blocks(self, hashes: Sequence[int], likely: int) -> int:
        """How many blocks of the prompt `hashes` the running requests hold; `likely` is tried first."""
        return self._blocks.shared(hashes, likely)

    def correct(self, prefill_tokens: int, decode_blocks: int, now: float) -> None:
        """The worker published its load: what is beyond our own bookings counts from now on."""
        self._reported_at = now
        self.prefill_tokens = max(prefill_tokens, self._booked_prefill_tokens)
        self._foreign_decode_blocks = max(0, decode_blocks - self._booked_blocks())
        self.decode_blocks = self._booked_blocks() + self._foreign_decode_blocks

    def expire(self, now: float) -> None:
        """Drop the bookings that are too old, since their end was lost, and a report that is."""
        if self._reported_at is not None and now - self._reported_at > REPORT_LIFETIME_SECONDS:
            self.correct(0, 0, now)
            self._reported_at = None
        while self._open:
            oldest = next(iter(self._open))
            if now - oldest.booked_at < self._lifetime:
                return
            self.expired += 1
            oldest.end()

    def computed(self, prefill_tokens: int) -> None:
        """Called by a booking: so many prompt tokens are done."""
        self._booked_prefill_tokens -= prefill_tokens
        self.prefill_tokens -= prefill_tokens

    def release(self, booking: Booking, held: Run | None, unnamed_blocks: int) -> None:
        """Called by a booking, once."""
        del self._open[booking]
        self._unnamed_blocks -= unnamed_blocks
        self._blocks.remove(held)
        self.decode_blocks = self._booked_blocks() + self._foreign_decode_blocks

    def _booked_blocks(self) -> int:
        return len(self._blocks) + self._unnamed_blocks
