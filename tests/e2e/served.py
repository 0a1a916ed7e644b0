"""`dynamo serve` as a user starts it: a real process on a free port, in a directory of its own, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import pytest

READY_SECONDS = 60.0
STOP_SECONDS = 30.0


class Served:
    """A running `dynamo serve`."""

    def __init__(self, directory: Path, arguments: list[str], env: Mapping[str, str]) -> None:
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


@contextlib.contextmanager
def serving(directory: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Start `dynamo serve`, which need not be ready yet; it ends with the block, whatever state it is in."""
    served = Served(directory, list(arguments), env or {})
    try:
        yield served
    finally:
        if served.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                served.stop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(served.process.pid, signal.SIGKILL)
