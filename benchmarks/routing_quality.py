"""Routing quality: the router's default mode on a trace, against an ideal cache, balance and other modes.

`dynamo replay` on virtual time, so nothing depends on the machine. The Mooncake conversation trace is read from
``$DYNAMO_TRACES/mooncake/conversation_trace.jsonl``, on 8 and 16 workers with unbounded caches and with 3,000 blocks;
without it, and with ``--quick``, the small trace that is shipped is replayed on 8 workers. There the imbalance within a
minute is shown and has no bar: most tokens are cached, a minute has some 150 requests, and least-loaded
computes three times as much and is more even (1.6 against 1.8).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.rows import Options, Row
from benchmarks.traces.make_conversations import PATH as SHIPPED_TRACE
from dynamo.mocker.core import CoreLimits
from dynamo.mocker.perf_model import PerfModel
from dynamo.replay.command import replay_mode, trace_facts
from dynamo.replay.report import TraceFacts
from dynamo.replay.results import ModeResult
from dynamo.replay.routing import ReplayRouter
from dynamo.replay.simulation import Simulation
from dynamo.replay.traces import Trace, read_trace
from dynamo.router.settings import RouterSettings

__all__ = ["lower", "replayed", "run"]

_MOONCAKE = "mooncake/conversation_trace.jsonl"
_MODES = ("round-robin", "least-loaded", "kv-upstream", "kv")
_UNBOUNDED_BLOCKS = 1 << 40
_LEAST_OF_IDEAL = 0.97
_MOST_IMBALANCE = 1.10
_MOST_OF_LEAST_LOADED = 1.1


def run(options: Options) -> Iterator[Row]:
    """Rows per number of workers and size of cache."""
    public = None if options.quick else _mooncake()
    cells: list[tuple[int, int | None]] = [(8, None), (16, None), (8, 3000), (16, 3000)]
    if public is None:
        cells = cells[:1]
    trace = public or read_trace(SHIPPED_TRACE)
    facts = trace_facts(trace)
    for workers, blocks in cells:
        results = {mode: replayed(trace, facts, mode, workers, blocks) for mode in _MODES}
        cell = f"{trace.name}, {workers} workers" + (f" of {blocks} blocks" if blocks else "")
        yield from _rows(cell, facts, results, unbounded=blocks is None, public=public is not None)


def _mooncake() -> Trace | None:
    folder = os.environ.get("DYNAMO_TRACES")
    path = Path(folder) / _MOONCAKE if folder else None
    if path is None or not path.is_file():
        print(f"  the shipped trace is used: DYNAMO_TRACES names no folder with {_MOONCAKE}", file=sys.stderr)
        return None
    return read_trace(path)


def replayed(trace: Trace, facts: TraceFacts, mode: str, workers: int, blocks: int | None) -> ModeResult:
    """One mode on one trace; `blocks` bounds each worker's cache."""
    limits = CoreLimits(total_blocks=blocks or _UNBOUNDED_BLOCKS, block_size=trace.block_size)
    router = ReplayRouter(RouterSettings(router_mode=mode), limits, workers)
    simulation = Simulation(trace, router, workers=workers, limits=limits, perf_model=PerfModel())
    return replay_mode(mode, simulation, facts)


def _rows(
    cell: str, facts: TraceFacts, results: dict[str, ModeResult], *, unbounded: bool, public: bool
) -> Iterator[Row]:
    kv, upstream, even = results["kv"], results["kv-upstream"], results["round-robin"]
    ideal = 100 * facts.ideal_hit_rate
    yield Row(
        name=f"{cell}: token hit rate",
        value=100 * kv.hit_rate,
        unit="%",
        reference="one cache without bounds",
        reference_value=ideal,
        bar=_LEAST_OF_IDEAL if unbounded else None,
    )
    yield lower(f"{cell}: imbalance", "-", kv.imbalance, "at most", _MOST_IMBALANCE, 1.0)
    least_loaded = results["least-loaded"].window_imbalance_p90
    name = f"{cell}: imbalance in 60 s, p90"
    bar = 1 / _MOST_OF_LEAST_LOADED if public else None
    yield lower(name, "-", kv.window_imbalance_p90, "least-loaded", least_loaded, bar)
    for other in (even, upstream):
        for what in ("mean", "p90"):
            mine, its = (1000 * getattr(result.ttft_seconds, what) for result in (kv, other))
            yield lower(f"{cell}: TTFT {what}, {other.mode}", "ms", mine, other.mode, its, 1.0)
    mine, its = (1000 * result.e2e_seconds.mean for result in (kv, upstream))
    yield lower(f"{cell}: end to end, mean", "ms", mine, upstream.mode, its, None)


def lower(name: str, unit: str, value: float, reference: str, reference_value: float, bar: float | None) -> Row:
    """A row of which less is better."""
    return Row(
        name=name,
        value=value,
        unit=unit,
        better="lower",
        reference=reference,
        reference_value=reference_value,
        bar=bar,
    )
