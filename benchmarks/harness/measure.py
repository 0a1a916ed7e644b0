"""Measuring: repeated, in turn with what is compared, in wall-clock and CPU time."""

from __future__ import annotations

import gc
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Result", "Sample", "alternate", "cpu_seconds", "held_up_ms", "machine"]


@dataclass(frozen=True)
class Sample:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Sample:
        """The sample of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def __mul__(self, factor: float) -> Sample:
        """The same in another unit."""
        return Sample(self.median * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Result:
    """Several runs of one piece of work, in the units that it counts."""

    per_second: Sample
    cpu_seconds_per_unit: Sample


def alternate(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Result]:
    """Run each of `works` once per round, in turn, after one round that is not counted.

    A piece of work returns how many units it did. Taking turns lets a change of the machine's speed hit all alike.
    """
    rates: dict[str, list[float]] = {name: [] for name in works}
    costs: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            gc.collect()
            cpu, start = cpu_seconds(), time.perf_counter()
            units = work()
            elapsed, burnt = time.perf_counter() - start, cpu_seconds() - cpu
            if number:
                rates[name].append(units / elapsed)
                costs[name].append(burnt / units)
    return {name: Result(Sample.of(rates[name]), Sample.of(costs[name])) for name in works}


def held_up_ms(seconds: float) -> float:
    """The longest time, within `seconds`, that a process which only looks at the clock did not get to do it."""
    last = time.perf_counter()
    end, longest = last + seconds, 0.0
    while last < end:
        now = time.perf_counter()
        longest = max(longest, now - last)
        last = now
    return longest * 1e3


def cpu_seconds() -> float:
    """CPU time, user and system, of this process and the children that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def machine() -> str:
    """The machine in words: processor, cores, memory, system, Python, and how busy it lately was."""
    gigabytes = psutil.virtual_memory().total / 2**30
    python = f"{platform.python_implementation()} {platform.python_version()}"
    load = f"load {psutil.getloadavg()[1]:.1f} over 5 minutes"
    return f"{_processor()}, {psutil.cpu_count()} cores, {gigabytes:.0f} GiB, {platform.system()}, {python}, {load}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
