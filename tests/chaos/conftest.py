"""A deployment per test, the long setting, and the table at the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.load import COLUMNS, Load, Report
from tests.e2e.processes import Deployment, deployment

_ROWS = pytest.StashKey[list[tuple[str, Report]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = [[name, *report.row()] for name, report in config.stash[_ROWS]]
    if not rows:
        return
    lines = [["what happened", *COLUMNS], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    terminalreporter.section("chaos")
    for line in lines:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    for name, report in config.stash[_ROWS]:
        for reason in report.reasons:
            terminalreporter.write_line(f"{name}: {reason}")


@pytest.fixture
def record(request: pytest.FixtureRequest):
    """Note a report for the table: ``record(report)``."""

    def note(report: Report, name: str = request.node.name) -> Report:
        request.config.stash[_ROWS].append((name.removeprefix("test_").replace("_", " "), report))
        return report

    return note


@pytest.fixture
def long_run() -> bool:
    """Whether faults last as long as in the reports (`nox -s chaos -- --long`), not as long as CI can wait."""
    return os.environ.get("DYNAMO_CHAOS") == "long"


@pytest.fixture
async def start_load() -> AsyncIterator[Callable[..., Load]]:
    """Begin to ask: ``start_load([frontend.url])``."""
    started: list[Load] = []

    def start(urls: Sequence[str], **options: Any) -> Load:
        started.append(Load(urls, **options))
        started[-1].start()
        return started[-1]

    yield start
    for load in started:
        await load.abandon()


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Deployment]:
    """Processes with file discovery, tcp and zmq."""
    with deployment(tmp_path) as made:
        yield made
