"""What the tests of all packages share: real etcd and NATS servers, and what was left out of a run.

At the end of a run a line per mark says which tests were left out and what runs them; pytest lists what was skipped.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from dynamo.errors import ConfigError
from dynamo.testing.servers import EtcdServer, NatsServer, Server

_Server = TypeVar("_Server", bound=Server)

#: Mark -> the session that runs what carries it; the first that fits counts.
SESSIONS = {
    "gpu": 'nox -s "gpu(ENGINE, PATTERN)"',
    "soak": "nox -s soak",
    "chaos": "nox -s chaos",
    "vllm": 'nox -s "engine(vllm)"',
    "slow": "nox -s full",
    "e2e": "nox -s e2e",
}
NO_ETCD_CLIENT = 'etcd needs aetcd: pip install "dynamo-core[etcd]"'
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


def new_server(kind: type[_Server], **options: Any) -> _Server:
    """A server of `kind`, or a skip that says how to get it."""
    try:
        return kind(**options)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    """One etcd for all tests that leave it running, and empty."""
    pytest.importorskip("aetcd", reason=NO_ETCD_CLIENT)
    with new_server(EtcdServer) as server:
        yield server


@pytest.fixture
def start_etcd() -> Iterator[Callable[..., EtcdServer]]:
    """``start_etcd(**options)`` gives a server that lives as long as the test."""
    pytest.importorskip("aetcd", reason=NO_ETCD_CLIENT)
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(new_server(EtcdServer, **options))


@pytest.fixture
def etcd(start_etcd: Callable[..., EtcdServer]) -> EtcdServer:
    """An etcd for one test to ill-treat."""
    return start_etcd()


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """One NATS server for all tests that do not stop it; they use namespaces of their own."""
    with new_server(NatsServer) as server:
        yield server


@pytest.fixture
def own_nats_server() -> Iterator[NatsServer]:
    """A NATS server for one test to ill-treat."""
    with new_server(NatsServer) as server:
        yield server
