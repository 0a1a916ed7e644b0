"""Request and token limits of one API key, in fixed windows of a minute.

Requests are paid for when they are admitted. Tokens are paid for when a request ends, since nobody knows them before:
a key that has tokens left is admitted, and may go beyond its limit by what its open requests still generate.
"""

from __future__ import annotations

from collections.abc import Callable

from dynamo.errors import RateLimited
from dynamo.frontend.security.windows import WindowStore

__all__ = ["WINDOW_SECONDS", "Budget", "Meter"]

WINDOW_SECONDS = 60
#: A lease is this part of a limit: at most about as many store calls per minute and process, and as many parts of the
#: limit that other processes cannot use.
_SLICES = 64


class Meter:
    """One limited quantity of one key, as this process counts it. `now` is Unix time in seconds."""

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
        self._enter_window(now)
        if self._leased <= 0 and not self._dry:
            self._leased, self._unleased = self._store.lease(self._counter, self._number, self._slice, self.limit)
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

    def remaining(self, now: float) -> int:
        """Left in this window, as far as this process knows."""
        self._enter_window(now)
        return self._leased + self._unleased

    def _enter_window(self, now: float) -> None:
        number = int(now // WINDOW_SECONDS)
        if number != self._number:
            self._number, self._leased, self._unleased, self._dry = number, 0, self.limit, False


class Budget:
    """The limits of one key.

    Args:
        name: of the key.
        requests: per minute; None is unlimited.
        tokens: per minute; None is unlimited.
        store: where they are counted.
        clock: Unix time in seconds.
    """

    __slots__ = ("_clock", "_requests", "_tokens", "name")

    def __init__(
        self, name: str, requests: int | None, tokens: int | None, store: WindowStore, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self._requests = None if requests is None else Meter(f"{name}/requests", requests, store)
        self._tokens = None if tokens is None else Meter(f"{name}/tokens", tokens, store)
        self._clock = clock

    def admit(self) -> None:
        """Pay for one request.

        Raises:
            RateLimited: a limit of this window is used up.
        """
        now = self._clock()
        if self._tokens is not None and not self._tokens.available(now):
            raise _refusal(self.name, "tokens", self._tokens.limit, now)
        if self._requests is not None:
            if not self._requests.available(now):
                raise _refusal(self.name, "requests", self._requests.limit, now)
            self._requests.spend(1, now)

    def charge(self, tokens: int) -> None:
        """Pay for the tokens of a request, prompt and answer together."""
        if self._tokens is not None:
            self._tokens.spend(tokens, self._clock())

    def headers(self) -> bytes:
        """OpenAI's ``x-ratelimit-*`` header lines."""
        now = self._clock()
        lines = ""
        for kind, meter in (("requests", self._requests), ("tokens", self._tokens)):
            if meter is not None:
                lines += f"x-ratelimit-limit-{kind}: {meter.limit}\r\n"
                lines += f"x-ratelimit-remaining-{kind}: {meter.remaining(now)}\r\n"
                lines += f"x-ratelimit-reset-{kind}: {_seconds_left(now)}s\r\n"
        return lines.encode()


def _seconds_left(now: float) -> int:
    return WINDOW_SECONDS - int(now % WINDOW_SECONDS)


def _refusal(name: str, kind: str, limit: int, now: float) -> RateLimited:
    return RateLimited(
        f"API key {name!r} has used up its {limit} {kind} per minute",
        reason="rate_limit_exceeded",
        retry_after_seconds=_seconds_left(now),
    )
