"""Says at the end of a run which tests were left out and what runs them; pytest lists what was skipped and why."""

from __future__ import annotations

import collections

import pytest

#: Mark -> the session that runs what carries it; the first that fits counts.
SESSIONS = {
    "gpu": 'nox -s "gpu(ENGINE, PATTERN)"',
    "soak": "nox -s soak",
    "chaos": "nox -s chaos",
    "vllm": 'nox -s "engine(vllm)"',
    "slow": "nox -s full",
    "e2e": "nox -s e2e",
}
_LEFT_OUT = pytest.StashKey[collections.Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Start counting."""
    config.stash[_LEFT_OUT] = collections.Counter()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what ``-m`` left out, by the mark that explains it."""
    for item in items:
        mark = next((mark for mark in SESSIONS if item.get_closest_marker(mark)), None)
        if mark is not None:
            item.config.stash[_LEFT_OUT][mark] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line per mark, before pytest's closing line."""
    for mark, count in config.stash[_LEFT_OUT].items():
        terminalreporter.write_line(f"left out: {count} {mark} tests; they run with: {SESSIONS[mark]}")
