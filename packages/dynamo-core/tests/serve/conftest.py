"""Real small processes for the scheduler to run, and ways to wait for what they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dynamo.protocols.scheduling import ComponentSpec
from dynamo.serve.backoff import RestartPolicy
from dynamo.serve.scheduler import LocalScheduler

#: Serves /health on DYN_SYSTEM_PORT; the flags make it misbehave.
REPLICA = """
import argparse, os, signal, socket, subprocess, sys
flags = argparse.ArgumentParser()
flags.add_argument("--exit", type=int)
flags.add_argument("--ignore-term", action="store_true")
flags.add_argument("--child", action="store_true")
flags.add_argument("--unhealthy-file")
flags.add_argument("--print", action="append", default=[])
flags.add_argument("--print-env", action="append", default=[])
options = flags.parse_args()
for text in options.print:
    print(text)
for name in options.print_env:
    print(name, os.environ.get(name))
if options.ignore_term:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if options.child:
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    print("grandchild", subprocess.Popen([sys.executable, "-c", sleeper]).pid)
sys.stdout.flush()
if options.exit is not None:
    sys.exit(options.exit)
with socket.create_server(("127.0.0.1", int(os.environ["DYN_SYSTEM_PORT"]))) as server:
    while True:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            status = b"503 Busy" if options.unhealthy_file and os.path.exists(options.unhealthy_file) else b"200 OK"
            connection.sendall(b"HTTP/1.1 " + status + b"\\r\\nContent-Length: 0\\r\\n\\r\\n")
"""

FAST = RestartPolicy(first_delay_seconds=0.05, max_delay_seconds=0.2, max_failed_starts=2)


class Recorder:
    """An Output that keeps everything."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.events: list[str] = []
        self.details: list[str] = []

    def line(self, label: str, text: str) -> None:
        self.lines.append((label, text))

    def event(self, text: str) -> None:
        self.events.append(text)

    def detail(self, text: str) -> None:
        self.details.append(text)


@pytest.fixture
def output() -> Recorder:
    return Recorder()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "replica.py"
    path.write_text(REPLICA)
    return path


@pytest.fixture
def component(program: Path) -> Callable[..., ComponentSpec]:
    def make(name: str = "worker", *flags: str, **fields) -> ComponentSpec:
        fields.setdefault("stop_grace_seconds", 5.0)
        return ComponentSpec(name, ("python3", str(program), *flags), **fields)

    return make


@pytest.fixture
async def scheduler(tmp_path: Path, output: Recorder) -> AsyncIterator[LocalScheduler]:
    running = LocalScheduler(tmp_path / "state", output=output, policy=FAST)
    yield running
    await running.close()


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    """Every process that the test started is gone when it ends."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert [(p.pid, p.cmdline()) for p in left if p.status() != psutil.STATUS_ZOMBIE] == []


async def _until(condition: Callable[[], object], what: str, timeout_seconds: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        await asyncio.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Waits for something that another process does; fails by name after a timeout."""
    return _until


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """Whether a process runs (a zombie does not)."""
    return _alive
