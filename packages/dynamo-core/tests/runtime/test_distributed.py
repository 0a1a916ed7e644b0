"""One process of a deployment: how it starts, is seen by others, drains and ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import textwrap
import uuid

import httpx
import pytest

from dynamo.errors import CannotConnect, ConfigError, Draining, PluginNotFound
from dynamo.protocols.addressing import EndpointAddress
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import EXIT_CONFIG, DistributedRuntime
from dynamo.runtime.server import iterator_handler
from dynamo.runtime.settings import RuntimeSettings

TIMEOUT = 20.0
ADDRESS = EndpointAddress("dynamo", "worker", "generate")


@pytest.fixture
def settings(tmp_path) -> RuntimeSettings:
    return RuntimeSettings(
        discovery_backend=f"memory://{uuid.uuid4().hex}", state_dir=str(tmp_path), event_plane="", plane_secret="s"
    )


async def until(condition) -> None:
    async def poll():
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), TIMEOUT)


class Gate:
    """A handler whose streams end when the test opens it."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, request, context):
        yield "begun"
        await self.open.wait()
        yield "done"


async def test_an_endpoint_is_announced_and_withdrawn(settings):
    async with DistributedRuntime(settings) as serving, DistributedRuntime(settings) as asking:
        client = asking.client(ADDRESS)
        record = await serving.serve_endpoint(ADDRESS, iterator_handler(Gate()), metadata={"zone": "a"})
        await until(client.instances)
        assert client.instances() == [record]
        assert (record.instance_id, record.metadata) == (serving.instance_id, {"zone": "a"})
        await serving.withdraw()
        await until(lambda: not client.instances())


async def test_one_process_serves_several_endpoints_on_one_port(settings):
    other = ADDRESS._replace(endpoint="admin")
    async with DistributedRuntime(settings) as serving, DistributedRuntime(settings) as asking:
        records = [await serving.serve_endpoint(address, iterator_handler(Gate())) for address in (ADDRESS, other)]
        assert records[0].transports == records[1].transports
        await until(lambda: asking.client(ADDRESS).instances() and asking.client(other).instances())
        await serving.withdraw()
        await until(lambda: asking.instances.all() == [])


async def test_an_endpoint_that_is_not_announced_can_be_reached_by_who_knows_it(settings):
    gate = Gate()
    gate.open.set()
    async with DistributedRuntime(settings) as serving, DistributedRuntime(settings) as asking:
        record = await serving.serve_endpoint(ADDRESS, iterator_handler(gate), announce=False)
        items = asking.client(ADDRESS).direct(record, None, Context("r"))
        assert [item async for item in items] == ["begun", "done"]
        assert await asking.discovery.list() == []


async def test_announcing_again_replaces_the_record(settings):
    async with DistributedRuntime(settings) as serving:
        record = await serving.serve_endpoint(ADDRESS, iterator_handler(Gate()))
        record.metadata["zone"] = "b"
        await serving.announce(record)
        assert [found.metadata for found in await serving.discovery.list()] == [{"zone": "b"}]
        await serving.withdraw()
        assert await serving.discovery.list() == []


async def test_draining_withdraws_refuses_and_waits(settings):
    gate = Gate()
    async with DistributedRuntime(settings) as serving, DistributedRuntime(settings) as asking:
        record = await serving.serve_endpoint(ADDRESS, iterator_handler(gate))
        client = asking.client(ADDRESS)
        running = client.direct(record, None, Context("running"))
        assert await anext(running) == "begun"
        draining = asyncio.create_task(serving.drain(TIMEOUT))
        await until(lambda: asking.instances.all() == [])
        with pytest.raises(Draining):
            await anext(client.direct(record, None, Context("late")))
        assert not draining.done()
        gate.open.set()
        assert [item async for item in running] == ["done"]
        assert await asyncio.wait_for(draining, TIMEOUT) is True


async def test_a_drain_whose_time_is_up_says_so(settings):
    async with DistributedRuntime(settings) as serving, DistributedRuntime(settings) as asking:
        record = await serving.serve_endpoint(ADDRESS, iterator_handler(Gate()))
        running = asking.client(ADDRESS).direct(record, None, Context("r"))
        await anext(running)
        assert await serving.drain(0.0) is False


async def test_draining_a_process_that_serves_nothing(settings):
    async with DistributedRuntime(settings) as runtime:
        assert await runtime.drain(TIMEOUT) is True


async def test_closing_withdraws_stops_and_may_be_repeated(settings):
    async with DistributedRuntime(settings) as serving:
        await serving.serve_endpoint(ADDRESS, iterator_handler(Gate()))
        async with DistributedRuntime(settings) as asking:
            await until(asking.client(ADDRESS).instances)
            await serving.close()
            await serving.close()
            await until(lambda: asking.instances.all() == [])
            assert serving.stopping.is_set()


async def test_the_system_port_answers_and_ends_with_the_process(settings):
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        async with DistributedRuntime(settings.model_copy(update={"system_port": 0})) as runtime:
            url = f"http://127.0.0.1:{runtime.system_server.port}/health"
            assert (await client.get(url)).status_code == 503
            runtime.health.require("engine", lambda: None)
            assert (await client.get(url)).status_code == 200
            runtime.health.require("engine", lambda: "starting")
            assert (await client.get(url)).status_code == 503
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


async def test_a_start_that_fails_leaves_nothing_running(settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        runtime = DistributedRuntime(settings.model_copy(update={"system_port": taken.getsockname()[1]}))
        before = asyncio.all_tasks()
        with pytest.raises(CannotConnect, match="cannot listen"):
            async with runtime:
                pass
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("field", ["discovery_backend", "request_plane", "event_plane"])
async def test_an_unknown_part_lists_what_is_installed(settings, field):
    with pytest.raises(PluginNotFound, match="named 'carrier-pigeon'") as caught:
        DistributedRuntime(settings.model_copy(update={field: "carrier-pigeon"}))
    assert caught.value.hint.startswith("installed: ")


async def test_the_plane_secret_of_a_file_and_of_the_environment_is_one(settings, tmp_path):
    file = tmp_path / "secret"
    file.write_bytes(b"s\n")
    from_file = settings.model_copy(update={"plane_secret": "", "plane_secret_file": str(file)})
    gate = Gate()
    gate.open.set()
    async with DistributedRuntime(settings) as serving, DistributedRuntime(from_file) as asking:
        record = await serving.serve_endpoint(ADDRESS, iterator_handler(gate))
        items = asking.client(ADDRESS).direct(record, None, Context("r"))
        assert [item async for item in items] == ["begun", "done"]
        file.write_bytes(b"\xff another one")
        async with DistributedRuntime(from_file) as stranger:
            with pytest.raises(CannotConnect):
                await anext(stranger.client(ADDRESS).direct(record, None, Context("r")))


@pytest.mark.parametrize(("content", "complaint"), [(None, "No such file"), (b" \n", "holds no secret")])
async def test_a_secret_file_that_is_missing_or_empty_is_refused(settings, tmp_path, content, complaint):
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        DistributedRuntime(settings.model_copy(update={"plane_secret_file": str(file)}))
    assert str(file) in caught.value.message
    assert "--plane-secret-file" in caught.value.hint


async def test_an_open_address_without_a_secret_is_refused(settings):
    unsafe = settings.model_copy(update={"plane_secret": "", "tcp_host": "0.0.0.0"})
    async with DistributedRuntime(unsafe) as runtime:
        with pytest.raises(ConfigError, match="other machines can reach"):
            await runtime.serve_endpoint(ADDRESS, iterator_handler(Gate()))


PROCESS = """
import asyncio, sys
from dynamo.errors import ConfigError, EngineShutdown
from dynamo.runtime.distributed import run_process
from dynamo.runtime.settings import RuntimeSettings

async def body(runtime):
{body}

run_process(RuntimeSettings(discovery_backend={discovery!r}, event_plane="", state_dir={state!r}), body)
print("ended", flush=True)
"""


@pytest.fixture
def process(tmp_path):
    """Starts a process whose body is this code."""
    started = []

    def start(body: str, discovery: str = "memory") -> subprocess.Popen[str]:
        code = PROCESS.format(body=textwrap.indent(body, "    "), discovery=discovery, state=str(tmp_path))
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for running in started:
        running.kill()
        running.communicate()


@pytest.mark.parametrize(
    ("body", "status", "stderr"),
    [
        ("pass", 0, ""),
        ("raise ConfigError('wrong flag', hint='use another')", EXIT_CONFIG, "Error: wrong flag\nuse another\n"),
        ("raise EngineShutdown('the engine died')", 1, "Error: the engine died\n"),
    ],
)
@pytest.mark.e2e
def test_the_exit_status_says_whether_to_start_again(process, body, status, stderr):
    running = process(body)
    _, errors = running.communicate(timeout=TIMEOUT)
    assert (running.returncode, errors) == (status, stderr)


@pytest.mark.e2e
def test_a_missing_plugin_would_be_missing_again(process):
    running = process("pass", discovery="carrier-pigeon")
    _, errors = running.communicate(timeout=TIMEOUT)
    assert running.returncode == EXIT_CONFIG
    assert errors.startswith("Error: there is no discovery backend named 'carrier-pigeon'\ninstalled: ")


@pytest.mark.e2e
def test_a_bug_shows_its_traceback(process):
    running = process("1 / 0")
    _, errors = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 1
    assert "Traceback" in errors
    assert errors.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.e2e
def test_a_signal_lets_the_body_finish(process, number):
    running = process("print('up', flush=True); await runtime.stopping.wait(); print('stopping', flush=True)")
    assert running.stdout.readline() == "up\n"
    running.send_signal(number)
    output, errors = running.communicate(timeout=TIMEOUT)
    assert (running.returncode, output, errors) == (0, "stopping\nended\n", "")


@pytest.mark.e2e
def test_a_second_signal_ends_a_body_that_does_not(process):
    running = process(
        "print('up', flush=True); await runtime.stopping.wait()\nprint('stopping', flush=True); await asyncio.Event().wait()"
    )
    assert running.stdout.readline() == "up\n"
    running.send_signal(signal.SIGTERM)
    assert running.stdout.readline() == "stopping\n"
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=TIMEOUT)
    assert (running.returncode, output) == (1, "")
