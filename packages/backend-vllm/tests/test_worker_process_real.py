"""`python3 -m dynamo.vllm` as a process: what is left when a part of it is killed. `nox -s "engine(vllm)"`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason='vLLM is not installed; nox -s "engine(vllm)" has it'
    ),
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
def start(tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    started: list[Worker] = []

    def one() -> Worker:
        started.append(Worker(tmp_path))
        return started[-1]

    yield one
    for worker in started:
        worker.process.kill()
        worker.process.communicate()


def _engine_files(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(("dynamo-vllm-", "vllm_dist_"))]


def test_the_death_of_the_engine_ends_the_worker_with_its_reason(start, tmp_path):
    worker = start()
    assert _engine_files(tmp_path) != []
    worker.core.kill()
    log = worker.rest_of_log()
    assert worker.process.returncode == 1
    assert "Error: vLLM's engine process ended" in log
    assert "the end of its output" in log
    assert psutil.wait_procs(worker.children, timeout=30)[1] == []
    assert _engine_files(tmp_path) == []


def test_a_killed_worker_leaves_nothing(start, tmp_path):
    worker = start()
    worker.process.kill()
    assert psutil.wait_procs(worker.children, timeout=30)[1] == []
    assert _engine_files(tmp_path) == []


def test_a_stop_signal_ends_all(start, tmp_path):
    worker = start()
    worker.process.terminate()
    worker.rest_of_log()
    assert worker.process.returncode == 0
    assert psutil.wait_procs(worker.children, timeout=30)[1] == []
    assert _engine_files(tmp_path) == []
