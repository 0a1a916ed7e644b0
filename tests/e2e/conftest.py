"""Starts `dynamo serve` as a user does: a real process on a free port, in a fresh directory, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

READY_SECONDS = 60.0
STOP_SECONDS = 30.0


class Served:
    """A running `dynamo serve`."""

    def __init__(self, directory: Path, arguments: list[str], env: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "serve.log"
        command = [sys.executable, "-m", "dynamo.cli", "serve", "--port", str(self.port), "--state-dir", str(directory)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *arguments], stdout=log, stderr=log, env={**os.environ, **env}, start_new_session=True
            )

    def text(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], object], what: str, seconds: float = READY_SECONDS) -> None:
        """Wait for `condition`, failing with the log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError, psutil.Error):
                if condition():
                    return
            assert self.process.poll() is None, f"serve ended while waiting for {what}:\n{self.text()}"
            time.sleep(0.05)
        pytest.fail(f"{what} did not happen:\n{self.text()}")

    def until_ready(self) -> Served:
        self.until(lambda: "Ready in" in self.text(), "readiness")
        return self

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self, module: str) -> list[psutil.Process]:
        return [process for process in self.processes() if module in " ".join(process.cmdline())]

    def stop(self, signum: int = signal.SIGINT) -> int:
        self.process.send_signal(signum)
        return self.process.wait(STOP_SECONDS)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start a deployment: ``serve("--replicas", "2").until_ready()``."""
    started: list[Served] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Served:
        directory = tmp_path / f"serve-{len(started)}"
        directory.mkdir()
        started.append(Served(directory, list(arguments), env or {}))
        return started[-1]

    yield start
    for served in started:
        if served.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                served.stop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(served.process.pid, signal.SIGKILL)
