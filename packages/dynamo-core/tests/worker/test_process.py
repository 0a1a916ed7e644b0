"""Worker processes as users and schedulers start them: flags, exit status, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from dynamo.errors import Disconnected, Draining, EngineShutdown
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.llm import LLMEngineOutput, PreprocessedRequest, StopConditions, pack_token_ids
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import EXIT_CONFIG, DistributedRuntime
from dynamo.runtime.settings import RuntimeSettings

pytestmark = pytest.mark.e2e

TIMEOUT = 60.0
ADDRESS = EndpointAddress("dynamo", "backend", "generate")

ENGINE = """
from dynamo.errors import ConfigError, EngineShutdown
from dynamo.hookspecs import hookimpl
from dynamo.protocols.engine import EngineConfig
from dynamo.protocols.llm import LLMEngineOutput

class Mortal:
    def __init__(self, options):
        pass
    async def start(self):
        return EngineConfig(model="mortal")
    async def generate(self, request, context):
        yield LLMEngineOutput([5])
        raise EngineShutdown("the device was lost")
    async def abort(self, request_id):
        pass
    async def drain(self, deadline_seconds):
        pass
    async def cleanup(self):
        print("cleaned up", flush=True)

def picky(options):
    raise ConfigError(f"model={options.model} name={options.served_model_name} mode={options.mode.value} {options.argv}")

@hookimpl
def dynamo_register_engines(engines):
    engines.register("mortal", Mortal)
    engines.register("picky", picky)
"""


class Processes:
    """Starts workers that share a state directory with this process."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self._site = directory / "site"
        info = self._site / "acme-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[dynamo]\nmain = acme_plugin\n")
        (self._site / "acme_plugin.py").write_text(textwrap.dedent(ENGINE))
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *argv: str, **environ: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "HF_"))}
        process = subprocess.Popen(
            [sys.executable, "-m", "dynamo.worker", *argv],
            env={
                **inherited,
                "PYTHONPATH": str(self._site),
                "DYN_STATE_DIR": str(self.state),
                "HF_HUB_OFFLINE": "1",
                "HF_HOME": str(self._site / "hf"),
                **environ,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def refused(self, *argv: str, **environ: str) -> tuple[int, str]:
        """Exit status and stderr of a worker that does not start."""
        process = self.start(*argv, **environ)
        _, errors = process.communicate(timeout=TIMEOUT)
        return process.returncode, errors


@pytest.fixture
def processes(tmp_path):
    made = Processes(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


@pytest.fixture
async def asking(processes):
    async with DistributedRuntime(RuntimeSettings(state_dir=str(processes.state), event_plane="")) as runtime:
        yield runtime.client(ADDRESS)


async def appears(client, process: subprocess.Popen[str]):
    async def poll():
        while not client.instances():
            assert process.poll() is None, process.stderr.read()
            await asyncio.sleep(0.02)
        return client.instances()[0]

    return await asyncio.wait_for(poll(), TIMEOUT)


async def vanishes(client) -> None:
    async def poll():
        while client.instances():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(poll(), TIMEOUT)


async def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = await asyncio.to_thread(process.communicate, timeout=TIMEOUT)
    return process.returncode, output, errors


def request(request_id: str, tokens: int) -> PreprocessedRequest:
    prompt = pack_token_ids(list(range(10, 10 + tokens)))
    return PreprocessedRequest(request_id, "echo", prompt, stop=StopConditions(max_tokens=tokens))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--backend", "reference", "--model", "/nonexistent"],
            "model directory /nonexistent does not exist\ncheck --model",
        ),
        (["--backend", "vlm"], "there is no engine named 'vlm'\ninstalled: "),
        (["--backend", "echo", "--tokens-per-secnd", "5"], "--tokens-per-second"),
        (["--backend", "echo", "--model", "org/model"], "not in the local cache, and HF_HUB_OFFLINE is set"),
        (["--backend", "echo", "--discovery-backend", "pigeon"], "there is no discovery backend named 'pigeon'"),
        (["--backend", "echo", "--namespace", "a b"], "namespace 'a b' is not a valid name"),
    ],
)
def test_what_would_fail_again_ends_with_ex_config_and_the_reason(processes, argv, said):
    status, errors = processes.refused(*argv)
    assert status == EXIT_CONFIG == os.EX_CONFIG
    assert said in errors
    assert "\nError: " in f"\n{errors}"
    assert "Traceback" not in errors


def test_a_wrong_variable_is_named(processes):
    status, errors = processes.refused("--backend", "echo", DYN_SYSTEM_PORT="high")
    assert (status, errors.splitlines()[0][:23]) == (EXIT_CONFIG, "Error: DYN_SYSTEM_PORT:")


@pytest.mark.parametrize("argv", [[], ["--backend", "echo", "--system-port", "high"]])
def test_wrong_usage_ends_with_the_usage(processes, argv):
    status, errors = processes.refused(*argv)
    assert status == 2
    assert errors.startswith("Usage: python3 -m dynamo.worker ")


def test_the_engine_gets_its_own_flags_untouched_and_ours_are_taken_out(processes):
    status, errors = processes.refused(
        *("--block-size", "16", "--backend", "picky", "-tp", "2", "--served-model-name", "n", "--kv-dtype=fp8"),
        *("--disaggregation-mode", "agg", "--enforce-eager", "--namespace", "ns", "--limit", "-1"),
    )
    argv = ("--block-size", "16", "-tp", "2", "--kv-dtype=fp8", "--enforce-eager", "--limit", "-1")
    assert (status, errors) == (EXIT_CONFIG, f"Error: model=None name=n mode=aggregated {argv}\n")


async def test_sigterm_withdraws_finishes_what_runs_and_takes_nothing_new(processes, asking):
    process = processes.start("--backend", "echo", "--tokens-per-second", "20", "--system-port", "0")
    record = await appears(asking, process)
    stream = asking.direct(record, request("running", 40), Context("running"), LLMEngineOutput)
    tokens = (await anext(stream)).token_ids
    process.send_signal(signal.SIGTERM)
    await vanishes(asking)
    with pytest.raises(Draining):
        await anext(asking.direct(record, request("late", 3), Context("late")))
    rest = [output async for output in stream]
    assert [*tokens, *(token for output in rest for token in output.token_ids)] == list(range(10, 50))
    assert rest[-1].finish_reason in ("stop", "length")
    status, _, errors = await ended(process)
    assert (status, "Traceback" in errors) == (0, False)


async def test_an_engine_that_dies_takes_the_worker_with_it_and_says_why(processes, asking):
    process = processes.start("--backend", "mortal")
    record = await appears(asking, process)
    stream = asking.direct(record, request("r", 3), Context("r"), LLMEngineOutput)
    assert (await anext(stream)).token_ids == [5]
    with pytest.raises(EngineShutdown, match="the device was lost"):
        await anext(stream)
    status, output, errors = await ended(process)
    assert (status, output) == (1, "cleaned up\n")
    assert errors.endswith("Error: the device was lost\n")
    await vanishes(asking)


async def test_a_process_that_dies_without_a_word_breaks_its_streams(processes, asking):
    process = processes.start("--backend", "echo", "--die-after", "3")
    record = await appears(asking, process)

    async def collect():
        return [output async for output in asking.direct(record, request("r", 50), Context("r"), LLMEngineOutput)]

    with pytest.raises(Disconnected):
        await collect()
    assert (await ended(process))[0] == 1


async def test_the_system_port_of_a_worker(processes, asking, unused_tcp_port):
    process = processes.start("--backend", "echo", DYN_SYSTEM_PORT=str(unused_tcp_port))
    await appears(asking, process)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{unused_tcp_port}", timeout=TIMEOUT) as client:

        async def poll():
            while (await client.get("/health")).status_code != 200:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(poll(), TIMEOUT)
        assert (await client.get("/live")).json() == {"status": "live"}
        assert "dynamo_component_requests_total" in (await client.get("/metrics")).text
    process.send_signal(signal.SIGINT)
    assert (await ended(process))[0] == 0
