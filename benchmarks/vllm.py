"""CPU around vLLM: our frontend and worker beside vLLM's own OpenAI server, on the same engine and model.

Both are started as users start them, with the same engine flags and variables, and host vLLM's `AsyncLLM` with its
engine in a process of its own. Counted is the user and system time of everything but that process: what tokenizes,
routes, detokenizes and streams, which is the frontend and the worker's main process here, the API server there. The
model is the demo model of the core (from a copy, so that no parser is chosen for it); prompts have about 64 tokens and
answers ignore the end of text. A token's cost is that of the longer answer less that of the answer with one token.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from benchmarks.harness.measure import Sample
from benchmarks.harness.rows import Options, Row
from benchmarks.serving.load import Phase
from benchmarks.serving.model import MODEL
from benchmarks.serving.systems import Client, Measured, System, client, free_port, server_process, until_serving
from dynamo.reference import demo_model_directory

__all__ = ["run"]

PEER = "vLLM's API server"
BAR = 1.0
ISL, OSL = 64, 128
#: Clients -> requests of a round with one token, and with `OSL` tokens.
LOADS = {1: (64, 16), 16: (256, 48), 64: (256, 128)}
_START_SECONDS = 900.0
_MICROSECONDS = 1e6
_ENGINE_FLAGS = (
    "--enforce-eager",
    "--dtype=float32",
    "--block-size=32",
    "--max-model-len=1024",
    "--max-num-seqs=64",
    "--kv-cache-memory-bytes=67108864",
)
#: What docs/how-to/serve-with-vllm.md says of CPUs, for both.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
#: Parts of the titles that vLLM gives to processes that compute.
_ENGINE_TITLES = ("EngineCore", "VLLM::Worker")


class _Hosts(System):
    """The processes of one side, without the engine's."""

    pids: Sequence[int] = ()

    def cpu_seconds(self) -> float:
        """User and system time since the start."""
        roots = [psutil.Process(pid) for pid in self.pids]
        family = [one for root in roots for one in (root, *root.children(recursive=True))]
        times = [one.cpu_times() for one in family if not any(title in one.name() for title in _ENGINE_TITLES)]
        return sum(used.user + used.system for used in times)


def run(options: Options) -> Iterator[Row]:
    """Rows of CPU, time to first token and throughput at each number of clients."""
    rounds = 2 if options.quick else 5
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = Path(folder) / "model"
        shutil.copytree(demo_model_directory(), model)
        load = stack.enter_context(client(model))
        systems = [stack.enter_context(_ours(Path(folder), model)), stack.enter_context(_peer(Path(folder), model))]
        for system in systems:
            until_serving(system.port, Path(folder) / f"{system.name}.log", _START_SECONDS)
            load.run(system, Phase(0, 128, 16, isl=ISL, osl=16, stream=True, ignore_eos=True))
        for clients, (requests, answers) in LOADS.items():
            short = Phase(0, requests, clients, isl=ISL, osl=1, stream=True, ignore_eos=True)
            long = Phase(0, answers, clients, isl=ISL, osl=OSL, stream=True, ignore_eos=True)
            yield from _compare(load, systems, short, long, rounds)


def _compare(load: Client, systems: Sequence[System], short: Phase, long: Phase, rounds: int) -> Iterator[Row]:
    measured: dict[str, list[tuple[Measured, Measured]]] = {system.name: [] for system in systems}
    for _ in range(rounds):
        for system in systems:
            measured[system.name].append((load.run(system, short), load.run(system, long)))

    def per_request(first: Measured, _: Measured) -> float:
        return first.cpu_seconds / short.requests * _MICROSECONDS

    def per_token(first: Measured, whole: Measured) -> float:
        return (whole.cpu_seconds / long.requests * _MICROSECONDS - per_request(first, whole)) / (long.osl - 1)

    def first_token(_: Measured, whole: Measured) -> float:
        return whole.outcome.first_ms[len(whole.outcome.first_ms) // 2]

    def speed(_: Measured, whole: Measured) -> float:
        return long.requests * long.osl / whole.outcome.seconds

    def events(_: Measured, whole: Measured) -> float:
        return (whole.outcome.chunks - long.requests) / (long.requests * long.osl)

    columns: list[tuple[str, str, bool, Callable[[Measured, Measured], float], float | None]] = [
        ("CPU per token", "us", False, per_token, BAR),
        ("CPU per request, OSL 1", "us", False, per_request, None),
        ("time to first event, median", "ms", False, first_token, None),
        ("throughput", "tokens/s", True, speed, None),
        ("events", "events/token", False, events, None),
    ]
    name = f"{short.clients} client{'s' if short.clients > 1 else ''}"
    for what, unit, more_is_better, value, bar in columns:
        mine, theirs = (Sample.of([value(*pair) for pair in measured[system.name]]) for system in systems)
        yield Row(
            name=f"{name}, {what}",
            value=mine.median,
            low=mine.low,
            high=mine.high,
            unit=unit,
            better="higher" if more_is_better else "lower",
            reference=PEER,
            reference_value=theirs.median,
            bar=bar,
        )


@contextmanager
def _ours(directory: Path, model: Path) -> Iterator[System]:
    """A frontend and a worker, with the defaults of both."""
    env = {**_ENVIRONMENT, "DYN_STATE_DIR": str(directory / "state"), "DYN_PLANE_SECRET": "benchmark"}
    env |= {"DYN_LOG": "warning"}
    worker = ["dynamo.vllm", "--model", str(model), "--served-model-name", MODEL, *_ENGINE_FLAGS]
    port = free_port()
    frontend = ["dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
    with ExitStack() as stack:
        worker_pid = stack.enter_context(server_process(sys.executable, worker, env, directory / "worker.log"))
        pid = stack.enter_context(server_process(sys.executable, frontend, env, directory / "ours.log"))
        yield _Hosts("ours", port, pid, pids=[pid, worker_pid])


@contextmanager
def _peer(directory: Path, model: Path) -> Iterator[System]:
    """The server that vLLM brings, as quiet about requests as ours.

    Not by the program `vllm`, which does not find its own distribution where that is vllm-cpu.
    """
    port = free_port()
    server = ["vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", MODEL]
    server += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log", *_ENGINE_FLAGS]
    env = {**_ENVIRONMENT, "TMPDIR": str(directory)}  # where it leaves its sockets
    with server_process(sys.executable, server, env, directory / "peer.log") as pid:
        yield _Hosts("peer", port, pid, pids=[pid])
