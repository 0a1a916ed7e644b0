"""CPU of the frontend per request and per token, beside upstream's compiled frontend and a bare server.

Everything is a process of its own: load, frontend, worker. CPU is user and system time of the frontend's processes. The
settings are the defaults, of both. Upstream is `ai-dynamo` 1.6.1 in an environment of its own (`nox` makes it and names
its interpreter in DYNAMO_BENCH_PEER); without it its rows have no reference, and a line says so. Paced streams get a
token every 20 ms, all in the same step, as from an engine; a token's cost is that of the longer answer less that of the
answer with one token. Where waiting is measured, the frontend has a core of its own. `--only TEXT` measures no rows but
those with TEXT in their names.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.harness.measure import Sample, held_up_ms
from benchmarks.harness.rows import Options, Row
from benchmarks.serving.load import Outcome, Phase
from benchmarks.serving.model import make_model
from benchmarks.serving.systems import Client, System, client, floor, on_cores_of_their_own, ours, upstream

__all__ = ["run"]

UPSTREAM = "upstream 1.6.1"
UPSTREAM_FAST = "upstream 1.6.1, fastokens"
FLOOR = "bare uvloop server"
LIMIT = "most on the 2-core reference machine"
_WAITING = "time to first token at 50 % load"
_NEXT_TURN = "next turn of 100,000 tokens"
_DOING_NOTHING = "doing nothing"
_IDLE = "10,000 open idle streams"
PACE_PER_SECOND = 50.0
_MICROSECONDS = 1e6
IDLE_STREAMS = 10_000
#: Prompt tokens: requests of a round, connections, and how many times cheaper than upstream a request has to be, with
#: upstream's default tokenizer and with its fast one.
REQUESTS: dict[int, tuple[int, int, float | None, float | None]] = {
    64: (1500, 32, 2.0, None),
    512: (500, 32, None, None),
    2048: (500, 32, 1 / 0.15, 1 / 0.8),
    4096: (400, 32, 1 / 0.15, 1 / 0.8),
    32_000: (40, 4, None, None),
    100_000: (16, 2, None, None),
}


class _Cost(NamedTuple):
    """One phase at one system."""

    microseconds: float
    """CPU per request."""
    outcome: Outcome


class _Bench:
    """The systems of one pace, and the client."""

    def __init__(self, load: Client, systems: Mapping[str, System], rounds: int) -> None:
        self.load = load
        self.systems = systems
        self.rounds = rounds

    def cost(self, name: str, phase: Phase) -> _Cost:
        measured = self.load.run(self.systems[name], phase)
        return _Cost(measured.cpu_seconds / phase.requests * _MICROSECONDS, measured.outcome)

    def in_turn(self, work: Callable[[str], float], *left_out: str) -> dict[str, Sample]:
        """`work` at every system in turn, several times."""
        names = [name for name in self.systems if name not in left_out]
        values: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(self.rounds):
            for name in names:
                values[name].append(work(name))
        return {name: Sample.of(found) for name, found in values.items()}


class _Plan(NamedTuple):
    """Rows that are measured together."""

    name: str
    """What their names begin with."""
    measure: Callable[[_Bench], Iterator[Row]]


def run(options: Options) -> Iterator[Row]:
    """Rows per request, per token, of waiting, of idling and of memory."""
    python = _peer()
    shapes = [(32, 64), (128, 64)] if options.quick else [(1, 256), (32, 64), (128, 64), (512, 64)]
    instant = [*_requests(), *_tokens("saturated", 1 / 0.85, _saturated(options))]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        directory = Path(folder)
        model = directory / "model"
        make_model(model)
        load = stack.enter_context(client(model))
        for pace, plans in ((0.0, instant), (PACE_PER_SECOND, _tokens("paced", 1 / 0.7, shapes))):
            wanted = [plan for plan in plans if _may_have(plan.name, options)]
            if wanted:
                with _systems(directory / f"pace-{pace:g}", model, python, pace) as systems:
                    bench = _Bench(load, systems, 3 if options.quick else 5)
                    for system in systems.values():
                        load.run(system, Phase(0, 300, 8, isl=64, osl=4, stream=True))
                    for plan in wanted:
                        yield from plan.measure(bench)
        if _may_have(_WAITING, options):
            yield from _first_token(load, directory / "waiting", model, python, rounds=3 if options.quick else 9)
        if _may_have(_NEXT_TURN, options):
            yield from _second_turn(load, directory / "turns", model, conversations=40 if options.quick else 100)
        if _may_have(_DOING_NOTHING, options):
            yield from _idle_processes(directory / "nothing", model, 10 if options.quick else 30)
        if _may_have(_IDLE, options):
            yield _idle_streams(load, directory / "idle", model, 2_000 if options.quick else IDLE_STREAMS)


def _may_have(name: str, options: Options) -> bool:
    """Whether rows whose names begin with `name` may be asked for."""
    return options.only in name or name in options.only


@contextmanager
def _systems(directory: Path, model: Path, python: str, pace: float) -> Iterator[dict[str, System]]:
    """All systems at one pace; upstream's only where it is installed."""
    starts = {
        "ours": ours(directory / "ours", model, tokens_per_second=pace),
        FLOOR: floor(directory / "floor", tokens_per_second=pace),
    }
    if python:
        for name, tokenizer in [(UPSTREAM, "default")] + ([] if pace else [(UPSTREAM_FAST, "fastokens")]):
            starts[name] = upstream(
                directory / tokenizer, model, python=python, tokens_per_second=pace, tokenizer=tokenizer
            )
    with ExitStack() as stack:
        yield {name: stack.enter_context(start) for name, start in starts.items()}


def _peer() -> str:
    """The interpreter of upstream's environment; "" where there is none."""
    python = os.environ.get("DYNAMO_BENCH_PEER", "")
    if not python:
        print("  upstream is left out: DYNAMO_BENCH_PEER names no interpreter with ai-dynamo", file=sys.stderr)
        return ""
    command = [python, "-m", "dynamo.frontend", "--version"]
    env = {**os.environ, "PYTHONPATH": ""}
    tried = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if tried.returncode:
        print(f"  upstream is left out: {python} cannot start it: {tried.stderr[-300:]}", file=sys.stderr)
        return ""
    return python


def _saturated(options: Options) -> list[tuple[int, int]]:
    """Clients and tokens of an answer."""
    if options.quick:
        return [(1, 256), (32, 256), (128, 64)]
    return [(clients, osl) for clients in (1, 32, 128, 512) for osl in (64, 256)]


def _requests() -> Iterator[_Plan]:
    for isl, (requests, clients, bar, fast_bar) in REQUESTS.items():
        for stream in (False, True) if isl == min(REQUESTS) else (False,):
            phase = Phase(0, requests, clients, isl=isl, osl=1, stream=stream)
            name = f"request, ISL {isl:,}, OSL 1" + (", stream" if stream else "")
            bars = {UPSTREAM: None if stream else bar, UPSTREAM_FAST: fast_bar}
            yield _Plan(name, partial(_request, name, phase, bars))


def _request(name: str, phase: Phase, bars: Mapping[str, float | None], bench: _Bench) -> Iterator[Row]:
    # Upstream's fast tokenizer is there for the bars that name it; the bare server reads no prompts.
    left_out = ([] if bars[UPSTREAM_FAST] else [UPSTREAM_FAST]) + ([FLOOR] if phase.isl > min(REQUESTS) else [])
    costs = bench.in_turn(partial(_request_cost, bench, phase), *left_out)
    yield from _rows(name, "us/request", costs, bars)


def _request_cost(bench: _Bench, phase: Phase, name: str) -> float:
    return bench.cost(name, phase).microseconds


def _tokens(kind: str, bar: float, shapes: list[tuple[int, int]]) -> Iterator[_Plan]:
    for clients, osl in shapes:
        requests = max(clients, 2 if kind == "paced" else 20_000 // osl)
        name = f"{kind} token, {clients} stream{'s' if clients > 1 else ''}, OSL {osl}"
        long = Phase(0, requests, clients, osl=osl, stream=True)
        # One stream makes too little work for the clock of processes.
        yield _Plan(name, partial(_token, name, long, bar if clients > 1 else None))


def _token(name: str, long: Phase, bar: float | None, bench: _Bench) -> Iterator[Row]:
    chunks: dict[str, float] = {}
    short = msgspec.structs.replace(long, osl=1)

    def cost(name: str) -> float:
        answer = bench.cost(name, long)
        # Without the end mark.
        chunks[name] = (answer.outcome.chunks - long.requests) / (long.requests * long.osl)
        return (answer.microseconds - bench.cost(name, short).microseconds) / (long.osl - 1)

    yield from _rows(name, "us/token", bench.in_turn(cost, UPSTREAM_FAST), {UPSTREAM: bar})
    yield Row(
        f"{name}, events",
        chunks["ours"],
        "events/token",
        better="lower",
        reference=UPSTREAM if UPSTREAM in chunks else "",
        reference_value=chunks.get(UPSTREAM),
    )


def _rows(name: str, unit: str, costs: Mapping[str, Sample], bars: Mapping[str, float | None]) -> Iterator[Row]:
    """One row per reference; the first one has the plain name."""
    mine = costs["ours"]
    references = [reference for reference in (UPSTREAM, UPSTREAM_FAST, FLOOR) if reference in costs]
    for reference in references or [""]:
        yield Row(
            name=name if reference in ("", UPSTREAM) else f"{name}, {reference}",
            value=mine.median,
            low=mine.low,
            high=mine.high,
            unit=unit,
            better="lower",
            reference=reference,
            reference_value=costs[reference].median if reference else None,
            bar=bars.get(reference),
        )


def _first_token(load: Client, directory: Path, model: Path, python: str, rounds: int) -> Iterator[Row]:
    """Time to the first event at half of the rate that is reached here, beside the bare server at the same arrivals.

    What is added is the frontend's, the worker's, and the wait of each for the one before it. Upstream gets half of the
    rate that it reaches, and so do we for that row. Told too is how long the machine holds up a process that only looks
    at the clock: nobody's slowest requests are faster.
    """
    times: dict[str, list[list[float]]] = {}
    slower = 0.0
    if python:
        with upstream(directory / "upstream", model, python=python) as system, on_cores_of_their_own(load, [system]):
            slower = _half_rate(load, system)
            times[UPSTREAM] = [_waits(load, system, slower, seed) for seed in range(1, rounds + 1)]
    # Its cache is full, as a worker's is most of its life, and not growing.
    with ours(directory / "ours", model, kv_blocks=16_384) as system, floor(directory / "floor") as bare:
        load.run(system, Phase(0, 5000, 32, osl=1, stream=True))
        with on_cores_of_their_own(load, [system, bare]):
            rate = _half_rate(load, system)
            for seed in range(1, rounds + 1):
                for name, one, speed in (("ours", system, rate), (FLOOR, bare, rate), ("slower", system, slower)):
                    if speed:
                        times.setdefault(name, []).append(_waits(load, one, speed, seed))
    stalls = [held_up_ms(1.0) for _ in range(rounds)]
    yield Row(f"{_WAITING}, requests", rate, "requests/s")
    yield _limited(f"{_WAITING}, longest hold-up of the machine in a second", Sample.of(stalls), "ms", 0.0, bar=False)
    for percent in (50, 99):
        at = {name: Sample.of([_percentile(one, percent) for one in found]) for name, found in times.items()}
        name = f"{_WAITING}, p{percent}"
        yield from _rows(name, "ms", {"ours": at["ours"], FLOOR: at[FLOOR]}, {})
        pairs = zip(times["ours"], times[FLOOR], strict=True)
        added = Sample.of([_percentile(one, percent) - _percentile(other, percent) for one, other in pairs])
        yield _limited(f"{name}, added", added, "ms", 3.0, percent == 99)
        if slower:
            costs = {"ours": at["slower"], UPSTREAM: at[UPSTREAM]}
            yield from _rows(f"{_WAITING} of upstream, p{percent}", "ms", costs, {})


def _half_rate(load: Client, system: System) -> float:
    """Requests per second at half of what the system answers at most."""
    phase = Phase(0, 1500, 32, osl=1, stream=True)
    load.run(system, phase)
    full = statistics.median(load.run(system, phase).outcome.seconds for _ in range(3))
    return 0.5 * phase.requests / full


def _waits(load: Client, system: System, per_second: float, seed: int) -> list[float]:
    """Milliseconds to the first event, ascending."""
    phase = Phase(0, 3000, 64, osl=1, stream=True, per_second=per_second, seed=seed)
    return load.run(system, phase).outcome.first_ms


def _percentile(ascending: list[float], percent: int) -> float:
    return ascending[len(ascending) * percent // 100]


def _second_turn(load: Client, directory: Path, model: Path, conversations: int) -> Iterator[Row]:
    """The next turn of chats whose first message has 100,000 tokens, routed round-robin and by KV cache."""
    for mode in ("round-robin", "kv"):
        # All of them stay in memory: what is measured is the cache, not its bound.
        flags = ["--router-mode", mode, "--tokenizer-cache-mib", "4096"]
        with ours(directory / mode, model, frontend_flags=flags) as system:
            turns = []
            for turn in (1, 2, 3, 4):
                phase = Phase(0, conversations, 1, isl=100_000, osl=1, seed=7, turns=turn)
                turns.append(load.run(system, phase).cpu_seconds / conversations * 1e3)
            sample = Sample.of(turns[1:])
        yield Row(f"first turn of 100,000 tokens, {mode}", turns[0], "ms/request", better="lower")
        yield _limited(f"{_NEXT_TURN}, {mode}", sample, "ms/request", 2.0, bar=True)


def _idle_processes(directory: Path, model: Path, seconds: float) -> Iterator[Row]:
    """CPU of a frontend and a worker without requests: discovery by files, keep-alives, load reports."""
    with ours(directory, model) as frontend:
        systems = {"frontend": frontend, "worker": System("worker", 0, frontend.worker_pid)}
        time.sleep(3)  # what they do once, when they have met
        before, start = {name: system.cpu_seconds() for name, system in systems.items()}, time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - start
        for name, system in systems.items():
            spent = system.cpu_seconds() - before[name]
            yield Row(f"{_DOING_NOTHING}, {name}", spent / elapsed * 1e3, "ms CPU/s", better="lower")


def _idle_streams(load: Client, directory: Path, model: Path, streams: int) -> Row:
    """Memory while each of many streams waits for its second token; fewer streams are scaled up."""
    flags = ["--max-inflight-requests", str(2 * IDLE_STREAMS)]
    with ours(directory, model, tokens_per_second=0.05, frontend_flags=flags) as system:
        most = 0

        def watch() -> None:
            nonlocal most
            while not ended.wait(0.5):
                most = max(most, system.resident_bytes())

        load.run(system, Phase(0, 50, 1))
        before, ended = system.resident_bytes(), threading.Event()
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            load.run(system, Phase(0, streams, streams, osl=2, stream=True))
        finally:
            ended.set()
            watcher.join()
    whole = before + (most - before) * IDLE_STREAMS / streams
    return _limited(_IDLE, Sample.of([whole / 2**20]), "MiB", 1024.0, bar=True)


def _limited(name: str, sample: Sample, unit: str, most: float, bar: bool) -> Row:
    return Row(
        name=name,
        value=sample.median,
        low=sample.low,
        high=sample.high,
        unit=unit,
        better="lower",
        reference=LIMIT if bar else "",
        reference_value=most if bar else None,
        bar=1.0 if bar else None,
    )
