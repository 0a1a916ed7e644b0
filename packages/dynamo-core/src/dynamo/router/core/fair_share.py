"""One priority of the router's queue: tenants share it by deficit round robin, each tenant's own requests by deadline.

Fairness comes before deadlines: a deadline is what a client says of itself, and one that names short ones must not
gain by it at the cost of other tenants. Deficit round robin: M. Shreedhar and G. Varghese, "Efficient Fair Queuing
Using Deficit Round-Robin", IEEE/ACM Transactions on Networking 4(3), 1996. The currency is prompt tokens to compute.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["FairShare", "Waiting"]

T = TypeVar("T")

#: Requests of one tenant that are looked at for one that a worker can take now. Only requests with different workers
#: (a pinned one, a LoRA's) differ here; further behind they wait for those before them.
_LOOK_AHEAD = 16


class Waiting(Generic[T]):
    """One request that waits."""

    __slots__ = ("cost_tokens", "deadline", "entered_at", "item", "number", "priority", "prompt_tokens", "tenant")

    def __init__(
        self,
        item: T,
        *,
        tenant: str = "",
        priority: int = 0,
        deadline: float = math.inf,
        prompt_tokens: int = 1,
        cost_tokens: int = 1,
    ) -> None:
        """`cost_tokens` of the `prompt_tokens` are to be computed; `deadline` is on the caller's clock."""
        self.item = item
        self.tenant = tenant
        self.priority = priority
        self.deadline = deadline
        self.prompt_tokens = max(1, prompt_tokens)
        self.cost_tokens = max(1, cost_tokens)
        self.number = -1
        """Order of arrival; set by the queue."""
        self.entered_at = 0.0


class _Tenant(Generic[T]):
    """What one tenant has waiting, soonest deadline first."""

    __slots__ = ("deficit", "order", "waiting", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.deficit = 0.0
        self.order: list[tuple[float, int]] = []
        self.waiting: dict[int, Waiting[T]] = {}

    def first(self, admits: Callable[[Waiting[T]], bool]) -> Waiting[T] | None:
        for _, number in self.order[:_LOOK_AHEAD]:
            if admits(self.waiting[number]):
                return self.waiting[number]
        return None


class FairShare(Generic[T]):
    """Requests of one priority. Every operation costs O(tenants + log requests)."""

    def __init__(self, quantum_tokens: int) -> None:
        """`quantum_tokens` per round go to a tenant of weight 1."""
        self._quantum = quantum_tokens
        self._tenants: dict[str, _Tenant[T]] = {}
        self._ring: deque[str] = deque()
        self._visited: str | None = None
        """The first of the ring, once it has got its share of this round."""

    def __len__(self) -> int:
        return sum(len(tenant.waiting) for tenant in self._tenants.values())

    def add(self, request: Waiting[T], weight: float) -> None:
        """Let `request` wait; `weight` is its tenant's."""
        tenant = self._tenants.get(request.tenant)
        if tenant is None:
            tenant = self._tenants[request.tenant] = _Tenant(weight)
            self._ring.append(request.tenant)
        tenant.weight = weight
        tenant.waiting[request.number] = request
        bisect.insort(tenant.order, (request.deadline, request.number))

    def remove(self, request: Waiting[T]) -> None:
        """Take `request`, which is here, out. A tenant without requests loses what it had saved up."""
        tenant = self._tenants[request.tenant]
        del tenant.waiting[request.number]
        del tenant.order[bisect.bisect_left(tenant.order, (request.deadline, request.number))]
        if not tenant.waiting:
            del self._tenants[request.tenant]
            self._ring.remove(request.tenant)
            if self._visited == request.tenant:
                self._visited = None

    def take(self, admits: Callable[[Waiting[T]], bool]) -> Waiting[T] | None:
        """Take out the next request that `admits` lets pass; None if there is none. Others keep their turn."""
        heads = {name: head for name in self._ring if (head := self._tenants[name].first(admits)) is not None}
        if not heads:
            return None
        self._skip_rounds(heads)
        while True:
            name = self._ring[0]
            head = heads.get(name)
            if head is not None:
                tenant = self._tenants[name]
                if self._visited != name:
                    self._visited = name
                    tenant.deficit += self._grant(name)
                if head.cost_tokens <= tenant.deficit:
                    tenant.deficit -= head.cost_tokens
                    self.remove(head)
                    return head
            self._visited = None
            self._ring.rotate(-1)

    def _grant(self, name: str) -> float:
        return self._quantum * self._tenants[name].weight

    def _skip_rounds(self, heads: dict[str, Waiting[T]]) -> None:
        """Pay out at once the rounds in which nobody could afford its head, however long the prompts are."""
        rounds = min(
            (head.cost_tokens - self._tenants[name].deficit) / self._grant(name) for name, head in heads.items()
        )
        whole = math.ceil(rounds) - 1
        if whole > 0:
            for name in heads:
                self._tenants[name].deficit += whole * self._grant(name)
