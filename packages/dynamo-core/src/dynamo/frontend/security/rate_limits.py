"""Request and token limits of one API key, in fixed windows of a minute.

Requests are paid for when they are admitted. Tokens are paid for when a request ends, since nobody knows them before:
a key that has tokens left is admitted, and may go beyond its limit by what its open requests still generate.
"""

from __future__ import annotations

from dynamo.errors import RateLimited
from dynamo.frontend.security.windows import WindowStore

__all__ = ["WINDOW_SECONDS", "Budget", "Meter"]

WINDOW_SECONDS = 60
#: A lease is this part of a limit: at most about as many store calls per minute and process, and as many parts of the
#: limit that other processes cannot use.
_SLICES = 64


class Meter:
    """One limited quantity of one key, as this process counts it. `now` is Unix time in seconds everywhere."""

    __slots__ = ("_counter", "_dry", "_leased", "_number", "_slice", "_store", "_unleased", "limit")

    def __init__(self, counter: str, limit: int, store: WindowStore) -> None:
        self.limit = limit
        """Per window."""
        self._counter = counter
        self._store = store
        self._slice = max(1, limit // _SLICES)
        self._number = -1
        self._leased = 0
        self._unleased = limit
        self._dry = False

    def available(self, now: float) -> bool:
        """Whether anything is left; leases the next slice when this process has none."""
        number = int(now // WINDOW_SECONDS)
        if number != self._number:
            self._number, self._leased, self._unleased, self._dry = number, 0, self.limit, False
        if self._leased <= 0 and not self._dry:
            self._leased, self._unleased = self._store.lease(self._counter, number, self._slice, self.limit)
            self._dry = self._leased == 0
        return self._leased > 0

    def spend(self, amount: int, now: float) -> None:
        """Use `amount`, also when that is more than what is left."""
        self.available(now)
        self._leased -= amount
        if self._leased < 0:
            self._store.charge(self._counter, self._number, -self._leased)
            self._unleased = max(0, self._unleased + self._leased)
            self._leased = 0

    def remaining(self) -> int:
        """Left in this window, as far as this process knows."""
        return self._leased + self._unleased


class Budget:
    """The limits of one key."""

    __slots__ = ("_requests", "_tokens", "name")

    def __init__(self, name: str, requests: int | None, tokens: int | None, store: WindowStore) -> None:
        """`requests` and `tokens` are per minute; None is unlimited."""
        self.name = name
        self._requests = None if requests is None else Meter(f"{name}/requests", requests, store)
        self._tokens = None if tokens is None else Meter(f"{name}/tokens", tokens, store)

    def admit(self, now: float) -> None:
        """Pay for one request.

        Raises:
            RateLimited: a limit of this window is used up.
        """
        if self._tokens is not None and not self._tokens.available(now):
            raise _refusal(self.name, "tokens", self._tokens.limit, now)
        if self._requests is not None:
            if not self._requests.available(now):
                raise _refusal(self.name, "requests", self._requests.limit, now)
            self._requests.spend(1, now)

    def charge(self, tokens: int, now: float) -> None:
        """Pay for the tokens of a request, prompt and answer together."""
        if self._tokens is not None:
            self._tokens.spend(tokens, now)

    def headers(self, now: float) -> bytes:
        """OpenAI's ``x-ratelimit-*`` header lines."""
        lines = b""
        reset = _seconds_left(now)
        for kind, meter in ((b"requests", self._requests), (b"tokens", self._tokens)):
            if meter is not None:
                lines += b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %ds\r\n" % (
                    *(kind, meter.limit),
                    *(kind, meter.remaining()),
                    *(kind, reset),
                )
        return lines


def _seconds_left(now: float) -> int:
    return WINDOW_SECONDS - int(now % WINDOW_SECONDS)


def _refusal(name: str, kind: str, limit: int, now: float) -> RateLimited:
    return RateLimited(
        f"API key {name!r} has used up its {limit} {kind} per minute",
        reason="rate_limit_exceeded",
        retry_after_seconds=_seconds_left(now),
    )
