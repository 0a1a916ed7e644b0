"""The numbers of one replay: reuse, balance, latencies, throughput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.replay.forking import RegretSample, sample_regret
from dynamo.replay.simulation import Flight, Simulation

__all__ = ["WINDOW_SECONDS", "ModeResult", "Percentiles", "QueueResult", "imbalance_by_window", "summarize"]

WINDOW_SECONDS = 60.0


class Percentiles(msgspec.Struct, frozen=True):
    """Of times in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: npt.ArrayLike) -> Percentiles:
        """Of the values given; zeros when there are none."""
        values = np.asarray(seconds, np.float64)
        if not len(values):
            return cls(0.0, 0.0, 0.0, 0.0)
        p50, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
        return cls(float(values.mean()), p50, p90, p99)


class QueueResult(msgspec.Struct, frozen=True):
    """What the router's queue did."""

    waited: int
    """Requests that were not sent at once, of those served."""
    wait_seconds: Percentiles
    """Of those."""
    ttft_seconds_by_priority: dict[int, Percentiles]
    """From the arrival; lower priorities are sooner."""


class ModeResult(msgspec.Struct, frozen=True):
    """One router mode on one trace."""

    mode: str
    workers: int
    requests: int
    """Those served."""
    refused: int
    """Those that the router refused: all workers were beyond a threshold, the queue was full, or the wait too long."""
    hit_rate: float
    """Prompt tokens found in the cache of the worker chosen, of all prompt tokens."""
    ideal_share: float | None
    """`hit_rate` of that of one cache without bounds; None when nothing can be reused."""
    imbalance: float
    """Uncached prompt tokens of the worker that has most of them, over their mean; the whole trace."""
    window_imbalance_p90: float
    """90th percentile of the same over windows of `WINDOW_SECONDS`, by arrival."""
    ttft_seconds: Percentiles
    itl_seconds: Percentiles
    """Between each token and the one before it."""
    e2e_seconds: Percentiles
    makespan_seconds: float
    """From the first arrival to the last token."""
    requests_per_second: float
    output_tokens_per_second: float
    preemptions: int
    simulated_in_seconds: float
    """Real time that the replay took."""
    regret: RegretSample | None = None
    """Of a sample of decisions, exactly; None when none was asked for, or there is one worker."""
    shadows: dict[str, Any] | None = None
    """What shadow policies would have chosen; see `dynamo.router.shadow.ShadowPolicies.to_json`."""
    queue: QueueResult | None = None
    """None where the router had none."""


def summarize(
    mode: str, simulation: Simulation, flights: Sequence[Flight], *, ideal_cached_tokens: int, real_seconds: float
) -> ModeResult:
    """The numbers of a simulation that has run. `flights` are what it returned."""
    prompt_tokens = sum(flight.request.input_tokens for flight in flights)
    cached_tokens = sum(flight.sequence.cached_tokens for flight in flights)
    workers = len(simulation.workers)
    arrivals = np.array([flight.request.arrival_seconds for flight in flights])
    ends = np.array([flight.end for flight in flights])
    makespan = float(ends.max() - arrivals.min())
    windows = imbalance_by_window(flights, workers)
    return ModeResult(
        mode=mode,
        workers=workers,
        requests=len(flights),
        refused=simulation.refused,
        hit_rate=cached_tokens / prompt_tokens,
        ideal_share=cached_tokens / ideal_cached_tokens if ideal_cached_tokens else None,
        imbalance=float(_imbalance(_uncached_tokens(flights, np.zeros(len(flights), np.intp), 1, workers))[0]),
        window_imbalance_p90=float(np.percentile(windows, 90)),
        ttft_seconds=Percentiles.of([flight.ttft for flight in flights]),
        itl_seconds=Percentiles.of(np.frombuffer(simulation.token_gaps, np.float64)),
        e2e_seconds=Percentiles.of(ends - arrivals),
        makespan_seconds=makespan,
        requests_per_second=len(flights) / makespan,
        output_tokens_per_second=sum(flight.request.output_tokens for flight in flights) / makespan,
        preemptions=sum(worker.core.preemptions for worker in simulation.workers),
        simulated_in_seconds=real_seconds,
        regret=sample_regret(simulation.forks, flights) if simulation.forks is not None else None,
        shadows=simulation.shadows,
        queue=_queue_result(flights) if simulation.queued else None,
    )


def _queue_result(flights: Sequence[Flight]) -> QueueResult:
    waits = [flight.sent - flight.request.arrival_seconds for flight in flights]
    by_priority: dict[int, list[float]] = {}
    for flight in flights:
        by_priority.setdefault(flight.request.priority, []).append(flight.ttft)
    waited = [wait for wait in waits if wait > 0]
    times = {priority: Percentiles.of(by_priority[priority]) for priority in sorted(by_priority)}
    return QueueResult(len(waited), Percentiles.of(waited), times)


def imbalance_by_window(flights: Sequence[Flight], workers: int) -> npt.NDArray[np.float64]:
    """Greatest over mean of the workers' uncached tokens, one value for each window with any."""
    windows = np.array([flight.request.arrival_seconds // WINDOW_SECONDS for flight in flights], np.intp)
    return _imbalance(_uncached_tokens(flights, windows, int(windows.max()) + 1, workers))


def _uncached_tokens(
    flights: Sequence[Flight], windows: npt.NDArray[np.intp], n_windows: int, workers: int
) -> npt.NDArray[np.float64]:
    """Shape ``[n_windows, workers]``."""
    table = np.zeros((n_windows, workers))
    chosen = np.array([flight.worker for flight in flights], np.intp)
    uncached = [flight.request.input_tokens - flight.sequence.cached_tokens for flight in flights]
    np.add.at(table, (windows, chosen), uncached)
    return table


def _imbalance(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    busy = table[table.any(axis=1)]
    ratios: npt.NDArray[np.float64] = busy.max(axis=1) / busy.mean(axis=1)
    return ratios
