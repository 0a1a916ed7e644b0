"""One router mode over one trace: an event-driven simulation on virtual time.

Requests arrive as the trace says, wait in the router's queue if it has one, the production router chooses (`routing`),
and mocker cores take the time that their perf model says. What a worker's step does is seen by the router when the step
has ended, its KV events a delay later.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from array import array
from collections import deque
from collections.abc import Sequence as Items
from typing import Any

from dynamo.errors import ConfigError, DynamoError, NoInstances, Overloaded, RateLimited
from dynamo.mocker.core import CoreEvent, CoreLimits, EngineCore, StepResult
from dynamo.mocker.perf_model import PerfModel
from dynamo.mocker.sequence import Sequence, SequenceState
from dynamo.protocols.routing import RouteRequest
from dynamo.replay.forking import DecisionForks
from dynamo.replay.routing import ReplayRouter
from dynamo.replay.traces import Trace, TraceRequest
from dynamo.router.route import Route

__all__ = ["Flight", "SimulatedWorker", "Simulation"]

#: How often workers publish their load while they step (as `dynamo.worker.load_publisher` does).
_LOAD_INTERVAL_SECONDS = 0.25


class Flight:
    """One request on its way; all times in seconds since the first arrival."""

    __slots__ = ("end", "first_token", "last_token", "number", "request", "route", "sent", "sequence", "worker")

    def __init__(self, number: int, request: TraceRequest, route: Route, sent: float) -> None:
        self.number = number
        """Its place in the trace."""
        self.request = request
        self.route = route
        self.worker = int(route.worker.instance_id)
        """Its place in `Simulation.workers`."""
        self.sent = sent
        """When the router sent it to its worker; after its arrival where it waited in the queue."""
        self.sequence = Sequence(
            self, request.input_tokens, request.output_tokens, request.hashes, priority=request.priority
        )
        self.first_token = self.last_token = self.end = 0.0

    @property
    def ttft(self) -> float:
        """Seconds from the arrival to the first token."""
        return self.first_token - self.request.arrival_seconds

    @property
    def predicted_regret(self) -> float | None:
        """Seconds, as the router sees it; see `dynamo.router.regret`."""
        outcome = self.route.ttft.outcome if self.route.ttft is not None else None
        return None if outcome is None else outcome.regret


class _FirstTokenReached(Exception):
    """The request that a forked simulation runs for has its first token."""


class _Waiting:
    """A request in the router's queue; see `dynamo.router.queue.QueueUser`."""

    __slots__ = ("_facts", "_number", "_simulation")

    def __init__(self, simulation: Simulation, number: int, facts: RouteRequest) -> None:
        self._simulation = simulation
        self._number = number
        self._facts = facts

    def admitted(self) -> None:
        """See `QueueUser`."""
        self._simulation.dispatch(self._number, self._facts)

    def refused(self, error: DynamoError) -> None:  # noqa: ARG002 - none is told apart
        """See `QueueUser`."""
        self._simulation.refused += 1


class SimulatedWorker:
    """One mocker core and whether it is within a step."""

    __slots__ = ("core", "load_time", "number", "stepping")

    def __init__(self, number: int, core: EngineCore) -> None:
        self.number = number
        self.core = core
        self.stepping = False
        self.load_time = float("-inf")
        """When its load was last published."""


class Simulation:
    """Runs once. `token_gaps` has the seconds between each token and the one before it."""

    def __init__(
        self,
        trace: Trace,
        router: ReplayRouter,
        *,
        workers: int,
        limits: CoreLimits,
        perf_model: PerfModel,
        kv_event_delay_seconds: float = 0.0,
        forks: DecisionForks | None = None,
    ) -> None:
        self.workers = [SimulatedWorker(number, EngineCore(limits, perf_model)) for number in range(workers)]
        self.token_gaps = array("d")
        self.refused = 0
        self._trace = trace
        self._router = router
        self._delay = kv_event_delay_seconds
        self.forks = forks
        self._forking = forks is not None
        self._time = router.time
        self._flights: list[Flight] = []
        self._arrived: deque[Flight] = deque()
        """Those that were sent at this moment: all are there before any worker goes on."""
        self._watched: Flight | None = None
        self._order = itertools.count()
        self._steps: list[tuple[float, int, SimulatedWorker, StepResult]] = []
        """Heap of steps by their end."""
        self._late_events: list[tuple[float, int, int, list[CoreEvent]]] = []
        """KV events on their way, by their arrival."""

    def run(self) -> list[Flight]:
        """All requests that were served; those that the router refused are counted in `refused`.

        Raises:
            ConfigError: a request does not fit a worker.
        """
        self._go_on(0)
        return self._flights

    @property
    def queued(self) -> bool:
        """Whether the router has a queue."""
        return self._router.has_queue

    @property
    def shadows(self) -> dict[str, Any] | None:
        """What the router's shadow policies would have chosen; None without any."""
        return self._router.shadows.to_json() if self._router.shadows is not None else None

    def first_token_at(self, worker: int, number: int) -> float:
        """Send request `number`, which is next, to `worker`; see `dynamo.replay.forking`. The last thing it does."""
        self._forking = False
        self._watched = self.dispatch(number, self._router.facts(self._trace.requests[number]), worker)
        if self._watched is None:
            return float("nan")
        with contextlib.suppress(_FirstTokenReached):
            self._go_on(number + 1)
        return self._watched.ttft

    def _go_on(self, first: int) -> None:
        """Run from request `first` on to the end."""
        for number in range(first, len(self._trace.requests)):
            arrival = self._trace.requests[number].arrival_seconds
            if arrival > self._time.now():
                self._begin_arrived()
                self._advance(arrival)
                self._time.move(arrival)
            if self._forking and self.forks is not None:
                self.forks.before(self, number, len(self.workers))
            self._arrive(number)
        self._begin_arrived()
        self._advance(float("inf"))

    def _begin_arrived(self) -> None:
        while self._arrived:  # what a worker says as it begins may let others out of the queue
            self._begin_step(self.workers[self._arrived.popleft().worker], self._time.now())

    def _arrive(self, number: int) -> None:
        """A request is there: it goes to a worker, or waits."""
        facts = self._router.facts(self._trace.requests[number])
        self._deliver_late_events(self._time.now())
        try:
            waits = self._router.waits(facts, _Waiting(self, number, facts))
        except (Overloaded, NoInstances, RateLimited):
            self.refused += 1
            return
        if not waits:
            self.dispatch(number, facts)

    def dispatch(self, number: int, facts: RouteRequest, worker: int | None = None) -> Flight | None:
        """Send a request to the worker that the router chooses, or to `worker`; None: it was refused."""
        now, request, router = self._time.now(), self._trace.requests[number], self._router
        self._deliver_late_events(now)
        try:
            route = router.select(facts, now) if worker is None else router.send_to(worker, facts, now)
        except (Overloaded, NoInstances):
            self.refused += 1
            return None
        flight = Flight(number, request, route, now)
        try:
            self.workers[flight.worker].core.add(flight.sequence)
        except ValueError as error:
            raise ConfigError(
                f"the request at {now:.3f} s does not fit a worker: {error}",
                param="blocks_per_worker",
                hint="give workers more blocks",
            ) from error
        self._flights.append(flight)
        self._arrived.append(flight)
        return flight

    def _advance(self, until: float) -> None:
        """End all steps that end before `until`, or then, and begin those that follow; alarms ring in between."""
        steps, time = self._steps, self._time
        while True:
            alarm = time.next_alarm()
            if steps and steps[0][0] <= min(until, alarm):
                now, _, worker, result = heapq.heappop(steps)
                time.move(now)
                worker.stepping = False
                self._end_step(worker, result, now)
                self._begin_step(worker, now)
            elif alarm < float("inf") and alarm <= until:
                time.ring()
            else:
                return
            self._begin_arrived()

    def _begin_step(self, worker: SimulatedWorker, now: float) -> None:
        if not worker.stepping and worker.core.has_work:
            result = worker.core.step(now)
            worker.stepping = True
            heapq.heappush(self._steps, (now + result.duration_seconds, next(self._order), worker, result))
        if now - worker.load_time >= _LOAD_INTERVAL_SECONDS or not worker.stepping:
            worker.load_time = now
            self._router.take_load(worker.number, worker.core.load(), now)

    def _end_step(self, worker: SimulatedWorker, result: StepResult, now: float) -> None:
        if result.events:
            if self._delay:
                late = (now + self._delay, next(self._order), worker.number, result.events)
                heapq.heappush(self._late_events, late)
            else:
                self._router.take_events(worker.number, result.events)
        self._take_outputs(result.outputs, now)  # which may let a request go that is like one of them

    def _take_outputs(self, outputs: Items[Sequence], now: float) -> None:
        gaps = self.token_gaps
        for sequence in outputs:
            flight: Flight = sequence.key
            if sequence.generated == 1:
                flight.first_token = now
                flight.route.answered(now)
                if flight is self._watched:
                    raise _FirstTokenReached
            else:
                gaps.append(now - flight.last_token)
            flight.last_token = now
            if sequence.state is SequenceState.ENDED:
                flight.end = now
                flight.route.end()

    def _deliver_late_events(self, now: float) -> None:
        """The router reads them only when it decides."""
        while self._late_events and self._late_events[0][0] <= now:
            _, _, number, events = heapq.heappop(self._late_events)
            self._router.take_events(number, events)
