"""Holds requests back while every worker that could take them has enough prompts to compute, and lets them go in order.

`CandidateTable` owns one per model; a frontend's generation enters it before it asks for a worker, so that the worker
is chosen when there is room and not before. Nothing polls: what frees a worker calls :meth:`RouterQueue.poke`. The
order and the bounds are in `dynamo.router.core.request_queue`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

from dynamo.errors import Draining, DynamoError, Overloaded, RateLimited
from dynamo.protocols.routing import RouteRequest
from dynamo.router.core.active_sequences import REPORT_LIFETIME_SECONDS
from dynamo.router.core.request_queue import QueueLimits, RequestQueue, Waiting
from dynamo.router.explain import queue_wait
from dynamo.router.queue_metrics import ModelQueueMetrics
from dynamo.router.settings import RouterSettings, parse_weight

__all__ = ["Alarm", "LoopTime", "QueueTime", "QueueUser", "QueuedRequest", "RouterQueue", "WorkerRoom"]

logger = logging.getLogger(__name__)

#: Weight of the newest wait in the estimate that clients are told to come back after.
_NEWEST = 0.2


class Alarm(Protocol):
    """Something that will be done, unless it is cancelled."""

    def cancel(self) -> None:
        """Do not do it."""
        ...


class QueueTime(Protocol):
    """The clock of a queue: `LoopTime`, or that of a simulation (`dynamo.replay.virtual_time`)."""

    def now(self) -> float:
        """Monotonic, in seconds."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Alarm:
        """Call `callback` so much later."""
        ...


class LoopTime:
    """Real time, on the running event loop."""

    def now(self) -> float:
        """See `QueueTime`."""
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Alarm:
        """See `QueueTime`."""
        return asyncio.get_running_loop().call_later(seconds, callback)


class QueueUser(Protocol):
    """Who waits. One of the two is called, at most once, from :meth:`RouterQueue.enter` on; neither may raise."""

    def admitted(self) -> None:
        """A worker has room: ask for one now."""
        ...

    def refused(self, error: DynamoError) -> None:
        """It waited too long, or was pushed out."""
        ...


class WorkerRoom(Protocol):
    """What the queue asks about workers."""

    def has_room(self, request: RouteRequest, now: float) -> bool:
        """Whether a worker that could take `request` is below the threshold.

        Raises:
            NoInstances: nobody can take it.
            Overloaded: all who could are busy.
        """
        ...

    def kind(self, request: RouteRequest) -> Hashable | None:
        """Equal for requests that :meth:`has_room` cannot tell apart; None: it may tell this one from all others."""
        ...

    def any_room(self, now: float) -> bool:
        """Whether any worker is below the threshold; without one no request has to be asked about."""
        ...

    def uncached_tokens(self, request: RouteRequest) -> int:
        """Prompt tokens that the worker which holds most of it would compute."""
        ...


class _Entry(NamedTuple):
    request: RouteRequest
    user: QueueUser
    context: contextvars.Context
    """Whose request it is: it is let go when somebody else's ends, and must not run in their name."""


QueuedRequest = Waiting[_Entry]


class RouterQueue:
    """The queue of one model; methods are called on one event loop."""

    def __init__(
        self,
        workers: WorkerRoom,
        settings: RouterSettings,
        metrics: ModelQueueMetrics | None = None,
        queue_time: QueueTime | None = None,
    ) -> None:
        """`queue_time` None is real time."""
        self._workers = workers
        self._metrics = metrics
        self._time: QueueTime = queue_time or LoopTime()
        self._queue: RequestQueue[_Entry] = RequestQueue(_limits(settings))
        self._target_seconds = settings.router_queue_ttft_target_ms / 1000
        self._timer: Alarm | None = None
        self._letting_go = False
        self._draining = False
        self._usual_wait_seconds = 0.0

    def __len__(self) -> int:
        return len(self._queue)

    def configure(self, settings: RouterSettings) -> None:
        """Go on with other limits; who waits already stays."""
        self._queue.limits = _limits(settings)
        self._target_seconds = settings.router_queue_ttft_target_ms / 1000
        self._arm()
        self.poke()

    def enter(self, request: RouteRequest, user: QueueUser) -> QueuedRequest | None:
        """Ask to go to a worker. None: go at once. Else `user` is told; it may :meth:`leave` before.

        Raises:
            NoInstances: nobody can take the request.
            Overloaded: all who could are busy, or the queue is full.
            RateLimited: the queue is full, and this tenant has most of it.
            Draining: it would have to wait, and this process goes down.
        """
        now = self._time.now()
        if self._metrics is not None:
            self._metrics.received()
        if self._workers.has_room(request, now) and not self._queue:
            return None
        if self._draining:
            raise self._going_down()
        entry = self._entry(request, user, now)
        pushed_out = self._queue.push(entry, now)
        if pushed_out is None:
            raise self._full(request.tenant)
        self._count(entry, 1)
        for victim in pushed_out:
            self._refuse(victim, "displaced", self._too_much(victim.tenant))
        self._arm()
        self.poke()
        return entry

    def leave(self, entry: QueuedRequest) -> None:
        """The client is gone. Nothing happens if `entry` has left already."""
        if self._queue.remove(entry):
            self._count(entry, -1)
            self._arm()

    def poke(self) -> None:
        """A worker has got room, perhaps: let go whom it can take."""
        if self._letting_go or not self._queue:
            return
        self._letting_go = True  # who is let go may fail at once and poke again
        try:
            # Mostly all workers are full, and with many tenants asking for each request takes a hundred times as long.
            while self._workers.any_room(self._time.now()):
                entry = self._queue.take(self._admission())
                if entry is None:
                    break
                self._count(entry, -1)
                waited = self._time.now() - entry.entered_at
                self._usual_wait_seconds += _NEWEST * (waited - self._usual_wait_seconds)
                if self._metrics is not None:
                    self._metrics.waited(waited)
                entry.item.context.run(queue_wait.set, waited)
                entry.item.context.run(entry.item.user.admitted)
        finally:
            self._letting_go = False
        self._arm()

    def drain(self) -> None:
        """This process goes down: who waits, and who would have to from now on, is told to come back."""
        self._draining = True
        for entry in self._queue.expire(math.inf):
            self._refuse(entry, "draining", self._going_down())
        self._arm()

    def close(self) -> None:
        """Stop the clock; who still waits has been answered by then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _admission(self) -> Callable[[QueuedRequest], bool]:
        """Whether workers have room for a request, asked once for all that are alike: until somebody is let go."""
        known: dict[Hashable, bool] = {}

        def admits(entry: QueuedRequest) -> bool:
            kind = self._workers.kind(entry.item.request)
            if kind is None:
                return self._admits(entry)
            if kind not in known:
                known[kind] = self._admits(entry)
            return known[kind]

        return admits

    def _admits(self, entry: QueuedRequest) -> bool:
        try:
            return self._workers.has_room(entry.item.request, self._time.now())
        except DynamoError:
            return False  # workers come back, or its time runs out
        except Exception:
            # Somebody's filter. Who asks here is another request; this one goes on and fails in its own name.
            logger.exception("whether there is room for request %s cannot be said", entry.item.request.request_id)
            return True

    def _entry(self, request: RouteRequest, user: QueueUser, now: float) -> QueuedRequest:
        target = request.ttft_target_seconds
        return Waiting(
            _Entry(request, user, contextvars.copy_context()),
            tenant=request.tenant,
            priority=request.priority,
            deadline=now + (self._target_seconds if target is None else target),
            prompt_tokens=request.prompt_tokens,
            cost_tokens=self._workers.uncached_tokens(request),
        )

    def _expire(self) -> None:
        self._timer = None
        limit = self._queue.limits.wait_seconds
        for entry in self._queue.expire(self._time.now()):
            error = Overloaded(f"no worker had room for {limit:g} s", retry_after_seconds=self._retry_after())
            self._refuse(entry, "expired", error)
        self._arm()
        self.poke()

    def _arm(self) -> None:
        """Wake up when the first has waited too long; and when reports of workers grow too old to be believed."""
        expiry = self._queue.next_expiry()
        if expiry is None:
            self.close()
        elif self._timer is None:
            seconds = max(0.0, min(expiry - self._time.now(), REPORT_LIFETIME_SECONDS))
            self._timer = self._time.call_later(seconds, self._expire)

    def _refuse(self, entry: QueuedRequest, reason: str, error: DynamoError) -> None:
        self._count(entry, -1)
        if self._metrics is not None:
            self._metrics.rejected(reason)
        entry.item.context.run(entry.item.user.refused, error)

    def _full(self, tenant: str) -> DynamoError:
        if self._metrics is not None:
            self._metrics.rejected("queue_full")
        held = self._queue.held()
        if len(held) > 1 and max(held, key=lambda name: held[name].prompt_tokens) == tenant:
            return self._too_much(tenant)
        return Overloaded(f"{len(self._queue)} requests wait already", retry_after_seconds=self._retry_after())

    def _going_down(self) -> Draining:
        return Draining("this router is going down", retry_after_seconds=1)

    def _too_much(self, tenant: str) -> RateLimited:
        return RateLimited(
            f"too many requests of {tenant or 'this client'!r} wait already",
            reason="queue_share_exceeded",
            retry_after_seconds=self._retry_after(),
        )

    def _retry_after(self) -> int:
        return max(1, math.ceil(min(self._usual_wait_seconds, self._queue.limits.wait_seconds)))

    def _count(self, entry: QueuedRequest, sign: int) -> None:
        if self._metrics is not None:
            self._metrics.pending(entry.tenant, sign, sign * entry.prompt_tokens)


def _limits(settings: RouterSettings) -> QueueLimits:
    return QueueLimits(
        requests=settings.router_queue_max_requests,
        prompt_tokens=settings.router_queue_max_tokens,
        wait_seconds=settings.router_queue_max_wait_seconds,
        quantum_tokens=settings.router_queue_quantum_tokens,
        weights=dict(map(parse_weight, settings.router_queue_tenant_weights)),
    )
