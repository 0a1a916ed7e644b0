"""The HTTP server alone: the same small application on ours, on uvicorn and on granian (see ADR 10).

CPU of the server's processes per request and per event, the load in a process of its own. uvicorn runs on uvloop and
httptools, granian with one worker; a server that is not installed is left out with a word.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness.measure import Sample
from benchmarks.harness.rows import Options, Row
from benchmarks.serving.load import Phase
from benchmarks.serving.model import make_model
from benchmarks.serving.systems import Client, System, client, http_server

__all__ = ["run"]

SERVERS = ("own", "uvicorn", "granian")
EVENTS = 256


def run(options: Options) -> Iterator[Row]:
    """Rows per request and per event, against each of the others."""
    rounds, requests = (2, 2000) if options.quick else (7, 5000)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = Path(folder) / "model"
        make_model(model)
        load = stack.enter_context(client(model))
        systems = {}
        for name in SERVERS:
            if name != "own" and importlib.util.find_spec(name) is None:
                print(f"  {name} is left out: it is not installed", file=sys.stderr)
                continue
            systems[name] = stack.enter_context(http_server(Path(folder), name))
            load.run(systems[name], Phase(0, 200, 8, osl=4, stream=True))
        whole = Phase(0, requests, 32)
        yield from _rows("request", "us/request", _in_turn(load, systems, whole, rounds, whole.requests))
        for clients in (1, 32, 256):
            phase = Phase(0, max(clients, requests // 40), clients, osl=EVENTS, stream=True)
            units = phase.requests * EVENTS
            yield from _rows(f"event, {clients} streams", "us/event", _in_turn(load, systems, phase, rounds, units))


def _in_turn(load: Client, systems: dict[str, System], phase: Phase, rounds: int, units: int) -> dict[str, list[float]]:
    """CPU microseconds per unit at each server, in turn."""
    costs: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, system in systems.items():
            costs[name].append(load.run(system, phase).cpu_seconds / units * 1e6)
    return costs


def _rows(name: str, unit: str, costs: dict[str, list[float]]) -> Iterator[Row]:
    mine = Sample.of(costs["own"])
    others = [other for other in costs if other != "own"]
    for other in others or [""]:
        yield Row(
            name=f"{name}, {other}" if other else name,
            value=mine.median,
            low=mine.low,
            high=mine.high,
            unit=unit,
            better="lower",
            reference=other,
            reference_value=Sample.of(costs[other]).median if other else None,
        )
