"""What one worker is busy with, from the moment a request is sent to it: booked load, corrected by what it publishes.

A worker's own report comes a quarter of a second late, in which a router sends it hundreds of requests; so the router
books what it sends. What a report holds beyond the booking is other routers' load, or output that has grown since.
"""

from __future__ import annotations

__all__ = ["REPORT_LIFETIME_SECONDS", "ActiveSequences", "Booking"]

#: What a worker said of its load longer ago than this is not used; workers repeat theirs every 5 s.
REPORT_LIFETIME_SECONDS = 15.0


class Booking:
    """One request at one worker. All methods may be called at any time and more than once."""

    __slots__ = ("_blocks", "_owner", "_prefill_tokens", "booked_at")

    def __init__(self, owner: ActiveSequences, prefill_tokens: int, blocks: list[int], now: float) -> None:
        self._owner: ActiveSequences | None = owner
        self._prefill_tokens = prefill_tokens
        self._blocks = blocks
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
            owner.release(self, self._blocks)


class ActiveSequences:
    """Requests of one worker that have not ended. `now` is any monotonic clock, in seconds.

    Blocks that several requests share count once, as they do in the worker's cache.
    """

    def __init__(self, lifetime_seconds: float) -> None:
        """A booking that is not ended within `lifetime_seconds` is dropped by :meth:`expire`."""
        self._lifetime = lifetime_seconds
        self._open: dict[Booking, None] = {}
        self._blocks: dict[int, int] = {}
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

    def book(self, uncached_tokens: int, hashes: list[int], now: float) -> Booking:
        """A request was sent: it has `uncached_tokens` to compute and its prompt is the blocks `hashes`."""
        booking = Booking(self, uncached_tokens, hashes, now)
        self._open[booking] = None
        self._booked_prefill_tokens += uncached_tokens
        self.prefill_tokens += uncached_tokens
        blocks = self._blocks
        for sequence_hash in hashes:
            blocks[sequence_hash] = blocks.get(sequence_hash, 0) + 1
        self.decode_blocks = len(blocks) + self._foreign_decode_blocks
        return booking

    def shared_blocks(self, hashes: list[int], likely: int) -> int:
        """How many blocks of the prompt `hashes` the running requests hold; `likely` is tried first.

        They hold whole prefixes, so the answer is found by bisection.
        """
        blocks = self._blocks
        if not hashes or hashes[0] not in blocks:
            return 0
        low, high = 0, len(hashes)
        if low < likely < high:
            if hashes[likely] in blocks:
                low = likely
            elif hashes[likely - 1] in blocks:
                return likely
            else:
                high = likely
        elif likely >= high and hashes[-1] in blocks:
            return high
        while high - low > 1:
            middle = (low + high) >> 1
            if hashes[middle] in blocks:
                low = middle
            else:
                high = middle
        return high

    def correct(self, prefill_tokens: int, decode_blocks: int, now: float) -> None:
        """The worker published its load: what is beyond our own bookings counts from now on."""
        self._reported_at = now
        self.prefill_tokens = max(prefill_tokens, self._booked_prefill_tokens)
        self._foreign_decode_blocks = max(0, decode_blocks - len(self._blocks))
        self.decode_blocks = len(self._blocks) + self._foreign_decode_blocks

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

    def release(self, booking: Booking, hashes: list[int]) -> None:
        """Called by a booking, once."""
        del self._open[booking]
        blocks = self._blocks
        for sequence_hash in hashes:
            count = blocks[sequence_hash]
            if count == 1:
                del blocks[sequence_hash]
            else:
                blocks[sequence_hash] = count - 1
        self.decode_blocks = len(blocks) + self._foreign_decode_blocks
