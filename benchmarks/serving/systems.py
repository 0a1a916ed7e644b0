"""The systems under load, each a frontend and a worker in processes of their own; CPU time is the frontend's alone.

`ours` and `upstream` have the same worker behind them: it answers with the same tokens, at once or at a pace. `floor`
is an HTTP server that does nothing but parse and write (`benchmarks.serving.floor_server`).
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import msgspec
import psutil
from tokenizers import Tokenizer

from benchmarks.serving.load import Outcome, Phase
from benchmarks.serving.model import CONTEXT_TOKENS, MODEL

__all__ = [
    "Client",
    "Measured",
    "System",
    "client",
    "floor",
    "free_port",
    "http_server",
    "on_cores_of_their_own",
    "ours",
    "server_process",
    "until_serving",
    "upstream",
]

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 60.0
_PEER_WORKER = "benchmarks.peers.frontend_worker"
BLOCK_SIZE = 16


class Measured(msgspec.Struct):
    """One phase: what the client saw and what the frontend spent."""

    outcome: Outcome
    cpu_seconds: float


class System(msgspec.Struct):
    """A running frontend."""

    name: str
    port: int
    pid: int
    worker_pid: int = 0
    """Of the worker behind it, where that is asked for."""

    def cpu_seconds(self) -> float:
        """User and system time of the frontend's processes and all their threads since their start."""
        process = psutil.Process(self.pid)
        return sum(_cpu_seconds(one) for one in (process, *process.children(recursive=True)))

    def resident_bytes(self) -> int:
        """Memory of the frontend's processes."""
        process = psutil.Process(self.pid)
        return sum(int(one.memory_info().rss) for one in (process, *process.children(recursive=True)))


def _cpu_seconds(process: psutil.Process) -> float:
    """CPU time of all threads of `process`: to the nanosecond by Linux's clock of it, else to a tick of 10 ms."""
    if platform.system() == "Linux":
        # As clock_getcpuclockid(3) makes the clock's number, which Python does not offer.
        return time.clock_gettime(~process.pid << 3 | 2)
    used = process.cpu_times()
    return float(used.user + used.system)


@contextmanager
def on_cores_of_their_own(load: Client, systems: Iterable[System]) -> Iterator[None]:
    """The frontends share one core; client and workers have the others. Nothing is done where there is but one core.

    For measuring latencies: else the scheduler moves three busy processes between two cores, and now and then each has
    to wait for a time slice of another.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(cores) < 2:
        yield
        return
    frontend, others = {min(cores)}, cores - {min(cores)}
    wanted = {load.pid: others}
    for system in systems:
        wanted |= {system.pid: frontend} | ({system.worker_pid: others} if system.worker_pid else {})
    for pid, allowed in wanted.items():
        _keep_on(pid, allowed)
    try:
        yield
    finally:
        for pid in wanted:
            _keep_on(pid, cores)


def _keep_on(pid: int, cores: set[int]) -> None:
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)


class Client:
    """The load process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self._read()
        self._seed = 0

    def run(self, system: System, phase: Phase) -> Measured:
        """One phase against `system`; each gets other prompts than any before, unless the phase has a seed.

        Raises:
            RuntimeError: a request failed, or the client's process ended.
        """
        self._seed += 1
        phase = msgspec.structs.replace(phase, port=system.port, seed=phase.seed or self._seed)
        self._write(json.dumps(msgspec.to_builtins(phase)))
        self._read()  # its requests are made
        before = system.cpu_seconds()
        self._write("go")
        outcome = msgspec.json.decode(self._read(), type=Outcome)
        spent = system.cpu_seconds() - before
        if outcome.failed:
            failed = f"{outcome.failed} of {phase.requests} requests failed at {system.name}"
            raise RuntimeError(f"{failed}: {outcome.failure}")
        return Measured(outcome, spent)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load process ended")
        return line


@contextmanager
def client(model: Path) -> Iterator[Client]:
    """A load process."""
    command = [sys.executable, "-m", "benchmarks.serving.load", str(model)]
    process = subprocess.Popen(command, cwd=_ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Client(process)
    finally:
        process.kill()
        process.wait()


@contextmanager
def ours(
    directory: Path,
    model: Path,
    *,
    tokens_per_second: float = 0,
    frontend_flags: Sequence[str] = (),
    kv_blocks: int = 1_000_000,
) -> Iterator[System]:
    """Our frontend as users start it, and an echo worker with a cache of `kv_blocks`."""
    directory.mkdir(parents=True, exist_ok=True)
    script = directory / "reply.jsonl"
    script.write_text(json.dumps({"token_ids": _reply(model)}), "utf-8")
    env = {"DYN_STATE_DIR": str(directory / "state"), "DYN_PLANE_SECRET": "benchmark", "DYN_LOG": "warning"}
    worker = ["dynamo.worker", "--backend", "echo", "--model", str(model), "--served-model-name", MODEL]
    worker += [
        "--script",
        str(script),
        "--tokens-per-second",
        str(tokens_per_second),
        "--engine-request-limit",
        "20000",
    ]
    worker += ["--max-model-len", str(CONTEXT_TOKENS), "--num-blocks", str(kv_blocks), "--block-size", str(BLOCK_SIZE)]
    port = free_port()
    frontend = ["dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port), *frontend_flags]
    with ExitStack() as stack:
        worker_pid = stack.enter_context(server_process(sys.executable, worker, env, directory / "worker.log"))
        pid = stack.enter_context(server_process(sys.executable, frontend, env, directory / "frontend.log"))
        until_serving(port, directory / "frontend.log")
        yield System("ours", port, pid, worker_pid)


@contextmanager
def upstream(
    directory: Path, model: Path, *, python: str, tokens_per_second: float = 0, tokenizer: str = "default"
) -> Iterator[System]:
    """Upstream's frontend, in the environment of the interpreter `python`, and a worker over its runtime."""
    directory.mkdir(parents=True, exist_ok=True)
    env = {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(directory / "discovery"),
        "DYN_EVENT_PLANE": "zmq",
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_LOG": "warn",
        "PYTHONPATH": "",  # ours must not be found: the namespace is the same
    }
    reply = ",".join(map(str, _reply(model)))
    worker = [_PEER_WORKER, MODEL, str(model), str(BLOCK_SIZE), str(tokens_per_second), reply]
    port = free_port()
    frontend = ["dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port), "--tokenizer", tokenizer]
    with ExitStack() as stack:
        stack.enter_context(server_process(python, worker, env, directory / "worker.log"))
        pid = stack.enter_context(server_process(python, frontend, env, directory / "frontend.log"))
        until_serving(port, directory / "frontend.log")
        yield System("upstream", port, pid)


@contextmanager
def floor(directory: Path, *, tokens_per_second: float = 0) -> Iterator[System]:
    """A bare server."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = ["benchmarks.serving.floor_server", str(port), str(tokens_per_second)]
    with server_process(sys.executable, command, {}, directory / "floor.log") as pid:
        until_serving(port, directory / "floor.log")
        yield System("floor", port, pid)


@contextmanager
def http_server(directory: Path, name: str) -> Iterator[System]:
    """A server of `benchmarks.serving.http_servers`."""
    port = free_port()
    log = directory / f"{name}.log"
    with server_process(sys.executable, ["benchmarks.serving.http_servers", name, str(port)], {}, log) as pid:
        until_serving(port, log)
        yield System(name, port, pid)


@contextmanager
def server_process(python: str, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[int]:
    """``python -m ARGUMENTS``, its pid; it ends with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-m", *arguments],
            cwd=_ROOT,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_serving(port: int, log: Path, seconds: float = _START_SECONDS) -> None:
    """Wait until the model is listed and can be used.

    Raises:
        RuntimeError: it is not within `seconds`; the message has the end of the frontend's log.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2) as response:
                if f'"{MODEL}"' in response.read().decode():
                    return
        except (URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"no model was served within {seconds:.0f} s: {log.read_text(errors='replace')[-2000:]}")


def _reply(model: Path) -> list[int]:
    """More tokens than any phase asks for: ordinary text, so that each of them becomes visible."""
    text = "The answer is forty two, and so is every other number that this worker ever says. " * 40
    ids: list[int] = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return ids[:600]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
