"""One router mode over one trace: an event-driven simulation on virtual time.

Requests arrive as the trace says, the production router chooses (`routing`), and mocker cores take the time that their
perf model says. What a worker's step does is seen by the router when the step has ended, its KV events a delay later.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections.abc import Sequence as Items

from dynamo.errors import ConfigError, Overloaded
from dynamo.mocker.core import CoreEvent, CoreLimits, EngineCore, StepResult
from dynamo.mocker.perf_model import PerfModel
from dynamo.mocker.sequence import Sequence, SequenceState
from dynamo.replay.routing import ReplayRouter
from dynamo.replay.traces import Trace, TraceRequest
from dynamo.router.route import Route

__all__ = ["Flight", "SimulatedWorker", "Simulation"]

#: How often workers publish their load while they step (as `dynamo.worker.load_publisher` does).
_LOAD_INTERVAL_SECONDS = 0.25


class Flight:
    """One request on its way; all times in seconds since the first arrival."""

    __slots__ = ("end", "first_token", "last_token", "request", "route", "sequence", "worker")

    def __init__(self, request: TraceRequest, route: Route) -> None:
        self.request = request
        self.route = route
        self.worker = int(route.worker.instance_id)
        """Its place in `Simulation.workers`."""
        self.sequence = Sequence(self, request.input_tokens, request.output_tokens, request.hashes)
        self.first_token = self.last_token = self.end = 0.0


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
    ) -> None:
        self.workers = [SimulatedWorker(number, EngineCore(limits, perf_model)) for number in range(workers)]
        self.token_gaps = array("d")
        self.refused = 0
        self._trace = trace
        self._router = router
        self._delay = kv_event_delay_seconds
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
        flights: list[Flight] = []
        for arrival, group in itertools.groupby(self._trace.requests, key=lambda request: request.arrival_seconds):
            self._advance(arrival)
            # All that arrive at once are there before any worker goes on.
            arrived = [flight for request in group if (flight := self._dispatch(request, arrival)) is not None]
            for flight in arrived:
                self._begin_step(self.workers[flight.worker], arrival)
            flights += arrived
        self._advance(float("inf"))
        return flights

    def _dispatch(self, request: TraceRequest, now: float) -> Flight | None:
        self._deliver_late_events(now)
        try:
            route = self._router.select(request, now)
        except Overloaded:
            self.refused += 1
            return None
        flight = Flight(request, route)
        try:
            self.workers[flight.worker].core.add(flight.sequence)
        except ValueError as error:
            raise ConfigError(
                f"the request at {now:.3f} s does not fit a worker: {error}",
                param="blocks_per_worker",
                hint="give workers more blocks",
            ) from error
        return flight

    def _advance(self, until: float) -> None:
        """End all steps that end before `until`, or then, and begin those that follow."""
        steps = self._steps
        while steps and steps[0][0] <= until:
            now, _, worker, result = heapq.heappop(steps)
            worker.stepping = False
            self._end_step(worker, result, now)
            self._begin_step(worker, now)

    def _begin_step(self, worker: SimulatedWorker, now: float) -> None:
        if not worker.stepping and worker.core.has_work:
            result = worker.core.step(now)
            worker.stepping = True
            heapq.heappush(self._steps, (now + result.duration_seconds, next(self._order), worker, result))
        if now - worker.load_time >= _LOAD_INTERVAL_SECONDS or not worker.stepping:
            worker.load_time = now
            self._router.take_load(worker.number, worker.core.load(), now)

    def _end_step(self, worker: SimulatedWorker, result: StepResult, now: float) -> None:
        self._take_outputs(result.outputs, now)
        if result.events:
            if self._delay:
                late = (now + self._delay, next(self._order), worker.number, result.events)
                heapq.heappush(self._late_events, late)
            else:
                self._router.take_events(worker.number, result.events)

    def _take_outputs(self, outputs: Items[Sequence], now: float) -> None:
        gaps = self.token_gaps
        for sequence in outputs:
            flight: Flight = sequence.key
            if sequence.generated == 1:
                flight.first_token = now
                flight.route.answered()
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
