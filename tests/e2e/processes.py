"""Frontends and workers as processes of their own, started side by side, signalled one by one, ended with their test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from dynamo.testing.servers import free_port

_P = TypeVar("_P", bound="Process")
START_SECONDS = 60.0
STOP_SECONDS = 20.0


class Process:
    """One frontend or worker. It can be started again after its end, on the same ports."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.system_port = free_port()
        self.log = log
        self._command = [sys.executable, "-m", *arguments]
        self._env = {**os.environ, **env, "DYN_SYSTEM_PORT": str(self.system_port)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, start_new_session=True
            )

    def until_ready(self) -> Process:
        wait_until(self.ready, "readiness", self)
        return self

    def ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.system_url}/health", timeout=5).status_code == 200
        return False

    @property
    def system_url(self) -> str:
        return f"http://127.0.0.1:{self.system_port}"

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def metric(self, name: str) -> float:
        """Sum over all label sets of a gauge or counter; 0 when it does not exist."""
        families = text_string_to_metric_families(httpx.get(f"{self.system_url}/metrics", timeout=5).text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None and self.running:
            self._process.kill()
            self._process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_SECONDS)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def end(self) -> None:
        """Whatever state it is in."""
        if self.running:
            self.send(signal.SIGCONT)
        self.kill()


class Frontend(Process):
    """A frontend on a port of its own."""

    def __init__(self, flags: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.port = free_port()
        super().__init__(
            ["dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(self.port), *flags], env, log
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def models(self) -> list[str]:
        with suppress(httpx.TransportError):
            return [model["id"] for model in httpx.get(f"{self.url}/v1/models", timeout=5).json()["data"]]
        return []

    def instances(self) -> list[str]:
        """Ids of the instances that it knows."""
        return [record["instance_id"] for record in httpx.get(f"{self.url}/health", timeout=5).json()["instances"]]


class Deployment:
    """Processes that find each other through `env`; `directory` has their state and their logs."""

    def __init__(self, directory: Path, env: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.env = {
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_STATE_DIR": str(directory / "state"),
            "DYN_PLANE_SECRET": "test",
            **(env or {}),
        }
        self.processes: list[Process] = []

    def worker(self, *flags: str, backend: str = "echo", env: Mapping[str, str] | None = None) -> Process:
        """Start a worker; it is not ready yet."""
        return self._add(
            Process(["dynamo.worker", "--backend", backend, *flags], {**self.env, **(env or {})}, self._log())
        )

    def frontend(self, *flags: str, env: Mapping[str, str] | None = None) -> Frontend:
        """Start a frontend; it is not ready yet."""
        return self._add(Frontend(flags, {**self.env, **(env or {})}, self._log()))

    def until_serving(self, frontend: Frontend, workers: int = 1, model: str = "echo") -> None:
        """Wait until `frontend` serves `model` and knows exactly `workers` instances."""
        wait_until(lambda: frontend.ready(), "the frontend", *self.processes)
        wait_until(lambda: model in frontend.models(), f"model {model}", *self.processes)
        wait_until(lambda: len(frontend.instances()) == workers, f"{workers} instances", *self.processes)

    def _log(self) -> Path:
        return self.directory / f"process-{len(self.processes)}.log"

    def _add(self, process: _P) -> _P:
        process.start()
        self.processes.append(process)
        return process


@contextmanager
def deployment(directory: Path, env: Mapping[str, str] | None = None) -> Iterator[Deployment]:
    """A deployment without processes, whose processes end with the block."""
    directory.mkdir(parents=True, exist_ok=True)
    made = Deployment(directory, env)
    try:
        yield made
    finally:
        for process in made.processes:
            process.end()


def wait_until(condition: Callable[[], object], what: str, *processes: Process, seconds: float = START_SECONDS) -> None:
    """Wait for `condition`, failing with the logs of `processes`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {process.log.name}\n{process.text()[-3000:]}" for process in processes)
            raise AssertionError(f"{what}: not within {seconds:g} s\n{logs}")
        time.sleep(0.02)
