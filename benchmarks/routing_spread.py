"""How much of the routing quality is luck: mode kv at other times, paces and seeds of traces.

`routing_quality` replays one trace as it was recorded. Here are Mooncake's conversation trace in two halves, each 0.8,
1 and 1.2 times as fast, and Azure's, which knows of no prefixes, from the folder that ``$DYNAMO_TRACES`` names; and the
shipped trace, drawn anew with other seeds. No row has a bar: one variation may go either way.

The floor of a time to the first token is what the prompt takes alone on an idle worker, behind what one cache without
bounds would have found of it. No policy gets below it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.harness.rows import Options, Row
from benchmarks.routing_quality import lower, replayed
from benchmarks.traces.make_conversations import requests as drawn
from dynamo.mocker.core import CoreLimits
from dynamo.mocker.perf_model import PerfModel
from dynamo.replay.command import trace_facts
from dynamo.replay.traces import Trace, ideal_cached_tokens, read_trace

__all__ = ["run"]

_MOONCAKE = "mooncake/conversation_trace.jsonl"
_AZURE = "azure2023/AzureLLMInferenceTrace_conv.csv"
_HALF_SECONDS = 1770.0


class _Variation(NamedTuple):
    name: str
    workers: int
    trace: Callable[[], Trace]


def run(options: Options) -> Iterator[Row]:
    """Rows per variation; `quick`: those of the shipped trace."""
    found = [] if options.quick else [*_public(), *_azure()]
    for variation in [*found, *_seeds((2, 3, 4, 5))]:
        if not options.only or variation.name in options.only or options.only in variation.name:
            yield from _rows(variation)


def _rows(variation: _Variation) -> Iterator[Row]:
    trace = variation.trace()
    facts = trace_facts(trace)
    kv, upstream = (replayed(trace, facts, mode, variation.workers, None) for mode in ("kv", "kv-upstream"))
    name = f"{variation.name}, {variation.workers} workers"
    if facts.ideal_hit_rate:
        ideal = 100 * facts.ideal_hit_rate
        hits = 100 * kv.hit_rate
        yield Row(f"{name}: token hit rate", hits, "%", reference="one cache without bounds", reference_value=ideal)
    yield lower(f"{name}: imbalance", "-", kv.imbalance, upstream.mode, upstream.imbalance, None)
    floor = _floor_seconds(trace)
    for what, least in (("mean", floor.mean()), ("p90", np.percentile(floor, 90))):
        mine, its = (1000 * getattr(result.ttft_seconds, what) for result in (kv, upstream))
        yield lower(f"{name}: TTFT {what}", "ms", mine, upstream.mode, its, None)
        yield lower(f"{name}: TTFT {what}, floor", "ms", mine, "floor", 1000 * float(least), None)
    mine, its = (1000 * result.e2e_seconds.mean for result in (kv, upstream))
    yield lower(f"{name}: end to end, mean", "ms", mine, upstream.mode, its, None)


def _floor_seconds(trace: Trace) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    budget, perf = CoreLimits().max_num_batched_tokens, PerfModel()
    found = []
    for request, cached in zip(trace.requests, ideal_cached_tokens(trace), strict=True):
        chunks = [
            (begin, min(begin + budget, request.input_tokens)) for begin in range(cached, request.input_tokens, budget)
        ]
        found.append(
            sum(perf.step_seconds(end - begin, (end - begin) * (begin + end - 1) / 2, 0, 0) for begin, end in chunks)
        )
    return np.array(found)


def _public() -> Iterator[_Variation]:
    path = _path(_MOONCAKE)
    if path is None:
        return
    whole = read_trace(path)
    for half, (begin, end) in (("1st half", (0.0, _HALF_SECONDS)), ("2nd half", (_HALF_SECONDS, float("inf")))):
        for pace in (0.8, 1.0, 1.2):
            for workers in (8, 16):
                name = f"{whole.name}, {half}, {pace:g}x as fast"
                yield _Variation(name, workers, functools.partial(_part, whole, begin, end, pace))


def _azure() -> Iterator[_Variation]:
    path = _path(_AZURE)
    if path is not None:
        yield _Variation("Azure conversations 2023", 2, functools.partial(read_trace, path))


def _seeds(seeds: tuple[int, ...]) -> Iterator[_Variation]:
    for seed in seeds:
        yield _Variation(f"conversations, seed {seed}", 8, functools.partial(_drawn, seed))


def _part(trace: Trace, begin: float, end: float, pace: float) -> Trace:
    requests = [request for request in trace.requests if begin <= request.arrival_seconds < end]
    start = requests[0].arrival_seconds
    return trace._replace(
        requests=[dataclasses.replace(r, arrival_seconds=(r.arrival_seconds - start) / pace) for r in requests]
    )


def _drawn(seed: int) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conversations.jsonl"
        path.write_text("".join(json.dumps(request) + "\n" for request in drawn(seed)), encoding="utf-8")
        return read_trace(path)


def _path(name: str) -> Path | None:
    folder = os.environ.get("DYNAMO_TRACES")
    path = Path(folder) / name if folder else None
    if path is None or not path.is_file():
        print(f"  left out: DYNAMO_TRACES names no folder with {name}", file=sys.stderr)
        return None
    return path
