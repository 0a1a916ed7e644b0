"""Requests that wait for a worker with room: strict priority, fair shares of tenants, deadlines; bounded. Pure.

`dynamo.router.queue` has one per model and does the waiting. What the bounds mean when they are reached: a request
that needs more room than is left may push out requests of later priorities, then of the tenant that has most of the
queue beyond its share; if it is itself of that tenant, it is refused. So a tenant that floods the queue meets its own
limit, and the others do not notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

from dynamo.router.core.fair_share import FairShare, Waiting

__all__ = ["QueueLimits", "RequestQueue", "Waiting"]

T = TypeVar("T")


class QueueLimits(NamedTuple):
    """See `dynamo.router.settings` for what they mean to users."""

    requests: int = 1024
    prompt_tokens: int = 4_000_000
    wait_seconds: float = 60.0
    quantum_tokens: int = 2048
    weights: Mapping[str, float] = {}
    """Of tenants; 1 for others."""


class _Held(NamedTuple):
    """What one tenant has waiting, over all priorities."""

    requests: int = 0
    prompt_tokens: int = 0


class RequestQueue(Generic[T]):
    """Requests of one model. `now` is any monotonic clock, in seconds."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.prompt_tokens = 0
        """Of all that wait."""
        self._levels: dict[int, FairShare[T]] = {}
        self._arrivals: dict[int, Waiting[T]] = {}
        self._held: dict[str, _Held] = {}
        self._next_number = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    def held(self) -> dict[str, _Held]:
        """What each tenant has waiting: requests and their prompt tokens."""
        return dict(self._held)

    def push(self, request: Waiting[T], now: float) -> list[Waiting[T]] | None:
        """Let `request` wait; what it pushes out. None: there is no room for it, and nothing has changed."""
        victims = self._victims(request)
        if victims is None:
            return None
        for victim in victims:
            self.remove(victim)
        request.number, request.entered_at = self._next_number, now
        self._next_number += 1
        level = self._levels.get(request.priority)
        if level is None:
            level = self._levels[request.priority] = FairShare(self.limits.quantum_tokens)
        level.add(request, self._weight(request.tenant))
        self._arrivals[request.number] = request
        self._count(request, 1)
        return victims

    def take(self, admits: Callable[[Waiting[T]], bool]) -> Waiting[T] | None:
        """Take out the request that is next among those that `admits` lets pass; None if there is none."""
        for priority in sorted(self._levels):
            taken = self._levels[priority].take(admits)
            if taken is not None:
                self._forget(taken)
                return taken
        return None

    def remove(self, request: Waiting[T]) -> bool:
        """Take `request` out; whether it was here."""
        if self._arrivals.get(request.number) is not request:
            return False
        self._levels[request.priority].remove(request)
        self._forget(request)
        return True

    def expire(self, now: float) -> list[Waiting[T]]:
        """Take out what has waited too long."""
        old = []
        for request in self._arrivals.values():  # in order of arrival
            if now - request.entered_at < self.limits.wait_seconds:
                break
            old.append(request)
        for request in old:
            self.remove(request)
        return old

    def next_expiry(self) -> float | None:
        """When :meth:`expire` will have something to do; None while nothing waits."""
        for request in self._arrivals.values():
            return request.entered_at + self.limits.wait_seconds
        return None

    def _weight(self, tenant: str) -> float:
        return self.limits.weights.get(tenant, 1.0)

    def _forget(self, request: Waiting[T]) -> None:
        del self._arrivals[request.number]
        if not len(self._levels[request.priority]):
            del self._levels[request.priority]
        self._count(request, -1)

    def _count(self, request: Waiting[T], sign: int) -> None:
        self.prompt_tokens += sign * request.prompt_tokens
        held = self._held.get(request.tenant, _Held())
        held = _Held(held.requests + sign, held.prompt_tokens + sign * request.prompt_tokens)
        if held.requests:
            self._held[request.tenant] = held
        else:
            del self._held[request.tenant]

    def _victims(self, request: Waiting[T]) -> list[Waiting[T]] | None:
        """What must go for `request`; None if it must not enter."""
        requests = len(self) + 1 - self.limits.requests
        tokens = self.prompt_tokens + request.prompt_tokens - self.limits.prompt_tokens
        victims: list[Waiting[T]] = []
        if requests <= 0 and tokens <= 0:
            return victims
        if request.prompt_tokens > self.limits.prompt_tokens:
            return None
        for victim in self._in_order_of_sacrifice(request):
            victims.append(victim)
            requests -= 1
            tokens -= victim.prompt_tokens
            if requests <= 0 and tokens <= 0:
                return victims
        return None

    def _in_order_of_sacrifice(self, newcomer: Waiting[T]) -> list[Waiting[T]]:
        """Requests that may go for `newcomer`, first to go first.

        Those of later priorities; then, of the same priority, those of the tenant with most tokens waiting for its
        weight, as long as it has more than the newcomer's would have.
        """
        shares = {tenant: held.prompt_tokens / self._weight(tenant) for tenant, held in self._held.items()}
        own = shares.pop(newcomer.tenant, 0.0) + newcomer.prompt_tokens / self._weight(newcomer.tenant)
        if max(self._levels) <= newcomer.priority and max(shares.values(), default=0.0) <= own:
            return []  # who floods the queue is refused at little cost
        later = [request for request in self._arrivals.values() if request.priority > newcomer.priority]
        later.sort(key=lambda request: (-request.priority, -request.number))
        peers = [
            request
            for request in self._arrivals.values()
            if request.priority == newcomer.priority and request.tenant in shares
        ]
        peers.sort(key=lambda request: (-shares[request.tenant], -request.number))
        for request in peers:
            left = shares[request.tenant] - request.prompt_tokens / self._weight(request.tenant)
            if left >= own:
                shares[request.tenant] = left
                later.append(request)
        return later
