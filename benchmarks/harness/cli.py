"""The command line that every benchmark has."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.harness.measure import cpu_seconds, machine
from benchmarks.harness.plot import write_png
from benchmarks.harness.report import shortfalls, table, write_json
from benchmarks.harness.rows import Options, Row

__all__ = ["Benchmark", "benchmarks", "execute", "main"]

_FOLDER = Path(__file__).parents[1]


def benchmarks() -> list[str]:
    """Names of the benchmarks: the modules beside the harness."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if not path.stem.startswith("_"))


class Benchmark(Protocol):
    """What a benchmark module offers."""

    __doc__: str | None

    def run(self, options: Options) -> Iterable[Row]:
        """Measure."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; 1 when `--check` finds a bar that is not reached."""
    asked = _parse(sys.argv[1:] if arguments is None else arguments)
    return execute(importlib.import_module(f"benchmarks.{asked.name}"), asked)


def execute(benchmark: Benchmark, asked: argparse.Namespace) -> int:
    """Run `benchmark` as `asked`; the exit status of :func:`main`."""
    start, cpu = time.monotonic(), cpu_seconds()
    rows: list[Row] = []
    options = Options(quick=asked.quick, only=asked.only)
    for row in benchmark.run(options):
        if not options.wants(row.name):
            continue
        print(f"  {time.monotonic() - start:4.0f} s: measured {row.name}", file=sys.stderr, flush=True)
        rows.append(row)
    here = machine()
    print(table(rows))
    print(f"{here}; took {time.monotonic() - start:.0f} s, {cpu_seconds() - cpu:.0f} s of CPU")
    if asked.json:
        flags = ["--quick"] * asked.quick + [f'--only "{asked.only}"'] * bool(asked.only)
        command = f'nox -s "bench({asked.name})"' + (f" -- {' '.join(flags)}" if flags else "")
        write_json(asked.json, rows, command=command, machine=here)
    if asked.plot:
        title = (benchmark.__doc__ or asked.name).strip().splitlines()[0].rstrip(".")
        write_png(asked.plot, title, rows, here)
    missed = shortfalls(rows)
    for line in missed:
        print(f"falls short: {line}")
    return 1 if missed and asked.check else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Run one benchmark.")
    parser.add_argument("name", choices=benchmarks())
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--only", default="", metavar="TEXT", help="measure no rows but those with TEXT in their names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the rows as PNG")
    parser.add_argument("--check", action="store_true", help="fail when a bar is not reached")
    return parser.parse_args(arguments)
