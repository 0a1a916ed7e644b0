"""`python3 -m dynamo.vllm` as a process: what is left when a part of it is killed. `nox -s "engine(vllm)"`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


class Worker:
    """A worker process that is ready."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-m", "dynamo.vllm", "--kv-cache-memory-bytes=16777216", "--max-model-len=1024"]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "DYN_STATE_DIR": str(directory), "TMPDIR": str(directory)},
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if "is ready after" in line:
                break
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    @property
    def core(self) -> psutil.Process:
        return next(child for child in self.children if "EngineCore" in child.name())

    def rest_of_log(self) -> str:
        _, rest = self.process.communicate(timeout=60)
        return rest


@pytest.fixture
def directory() -> Iterator[Path]:
    """For temporary files. Its name is short: sockets lie below it, whose paths the system bounds to 107 characters."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[[], Worker]]:
    started: list[Worker] = []
    before = _temporary_files()

    def one() -> Worker:
        started.append(Worker(directory))
        return started[-1]

    yield one
    for worker in started:
        worker.process.kill()
        worker.process.communicate()
    assert _temporary_files() - before == set()


def _temporary_files() -> set[str]:
    """Where nothing of an engine may appear: outside its directory, and in the shared memory."""
    sockets = {str(path) for path in Path(tempfile.gettempdir()).iterdir() if path.is_socket()}
    return sockets | {str(path) for path in Path("/dev/shm").iterdir() if path.stat().st_uid == os.getuid()}


def _engine_files(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(("dynamo-vllm-", "vllm_dist_"))]


def test_the_death_of_the_engine_ends_the_worker_with_its_reason(start, directory):
    worker = start()
    assert _engine_files(directory) != []
    worker.core.kill()
    log = worker.rest_of_log()
    assert worker.process.returncode == 1
    assert "Error: vLLM's engine process ended" in log
    assert "the end of its output" in log
    assert psutil.wait_procs(worker.children, timeout=30)[1] == []
    assert _engine_files(directory) == []


@pytest.mark.parametrize("whole", [False, True], ids=["worker", "group"])
def test_a_killed_worker_leaves_nothing(start, directory, whole):
    """Also when all of its processes are killed at once, as a supervisor or the system that lacks memory does."""
    worker = start()
    if whole:
        os.killpg(worker.process.pid, signal.SIGKILL)
    else:
        worker.process.kill()
    assert psutil.wait_procs(worker.children, timeout=30)[1] == []
    assert _engine_files(directory) == []


def test_a_stop_signal_ends_all(start, directory):
    worker = start()
    worker.process.terminate()
    worker.rest_of_log()
    assert worker.process.returncode == 0
    assert psutil.wait_procs(worker.children, timeout=30)[1] == []
    assert _engine_files(directory) == []
