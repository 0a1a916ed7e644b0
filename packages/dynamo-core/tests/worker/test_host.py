"""The worker host around an engine that does what the test says."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import pytest

from dynamo.errors import (
    Cancelled,
    ConfigError,
    Draining,
    EngineError,
    EngineShutdown,
    InvalidRequest,
    Overloaded,
    StreamIncomplete,
)
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.engine import EngineConfig
from dynamo.protocols.llm import LLMEngineOutput, PreprocessedRequest, Usage, pack_token_ids
from dynamo.protocols.load import EngineLoad
from dynamo.protocols.model_card import ARTIFACTS_ENDPOINT, ArtifactRequest
from dynamo.reference import demo_model_directory
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.settings import RuntimeSettings
from dynamo.worker.host import Worker
from dynamo.worker.settings import WorkerSettings

TIMEOUT = 20.0
ADDRESS = EndpointAddress("dynamo", "backend", "generate")
LAST = LLMEngineOutput(finish_reason="stop", usage=Usage(1, 2))


class ScriptedEngine:
    """Streams `steps`: outputs, errors to raise, events to wait for. An abort ends a stream as the contract says."""

    def __init__(self, *steps, start: object = None, config: EngineConfig | None = None) -> None:
        self.steps = steps or (LLMEngineOutput([5]), LLMEngineOutput([6]), LAST)
        self.calls: list[str] = []
        self._start = start
        self._config = config or EngineConfig(model="scripted")
        self._stops: dict[str, asyncio.Event] = {}

    async def start(self) -> EngineConfig:
        self.calls.append("start")
        if isinstance(self._start, Exception):
            raise self._start
        if isinstance(self._start, asyncio.Event):
            await self._start.wait()
        return self._config

    async def generate(self, request, context):
        self.calls.append(f"generate {request.request_id}")
        stopped = self._stops[request.request_id] = asyncio.Event()
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    waits = [asyncio.ensure_future(step.wait()), asyncio.ensure_future(stopped.wait())]
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    for wait in waits:
                        wait.cancel()
                    if stopped.is_set():
                        yield LLMEngineOutput(finish_reason="cancelled", usage=Usage(1, 0))
                        return
                else:
                    yield step
        finally:
            self.calls.append(f"end {request.request_id}")

    async def abort(self, request_id) -> None:
        self.calls.append(f"abort {request_id}")
        if request_id in self._stops:
            self._stops[request_id].set()

    async def drain(self, deadline_seconds) -> None:
        self.calls.append("drain")

    async def cleanup(self) -> None:
        self.calls.append("cleanup")


def request(request_id: str = "r") -> PreprocessedRequest:
    return PreprocessedRequest(request_id, "scripted", pack_token_ids([1]))


class Hosted:
    """A worker that runs, and somebody who asks it."""

    def __init__(self, settings: RuntimeSettings, engine, **worker_settings) -> None:
        self.engine = engine
        self.runtime = DistributedRuntime(settings)
        self.asking = DistributedRuntime(settings)
        self.worker = Worker(engine, "scripted", WorkerSettings(**worker_settings), self.runtime)

    async def __aenter__(self):
        await self.runtime.start()
        await self.asking.start()
        self.client = self.asking.client(ADDRESS)
        self.running = asyncio.create_task(self.worker.run())
        return self

    async def __aexit__(self, *_) -> None:
        self.runtime.stopping.set()
        await asyncio.wait_for(asyncio.gather(self.running, return_exceptions=True), TIMEOUT)
        await self.asking.close()
        await self.runtime.close()

    async def until(self, condition) -> None:
        async def poll():
            while not condition():
                await asyncio.sleep(0.005)

        await asyncio.wait_for(poll(), TIMEOUT)

    async def ready(self):
        await self.until(self.client.instances)
        return self

    def ask(self, request_id: str = "r", context: Context | None = None):
        return self.client.round_robin(request(request_id), context or Context(request_id), LLMEngineOutput)

    async def outputs(self, request_id: str = "r"):
        async def collect():
            return [output async for output in self.ask(request_id)]

        return await asyncio.wait_for(collect(), TIMEOUT)

    def metric(self, name: str) -> float:
        return sum(s.value for m in self.runtime.metrics.collect() for s in m.samples if s.name == name)


@pytest.fixture
async def host(tmp_path):
    """Hosts an engine until the test ends."""
    settings = RuntimeSettings(
        discovery_backend=f"memory://{uuid.uuid4().hex}", state_dir=str(tmp_path), event_plane="", plane_secret="s"
    )
    async with contextlib.AsyncExitStack() as stack:

        async def start(engine, **worker_settings) -> Hosted:
            worker_settings.setdefault("drain_grace_seconds", TIMEOUT)
            return await stack.enter_async_context(Hosted(settings, engine, **worker_settings))

        yield start


async def test_a_request_is_served_by_the_engine(host):
    hosted = await (await host(ScriptedEngine())).ready()
    assert await hosted.outputs() == [LLMEngineOutput([5]), LLMEngineOutput([6]), LAST]
    assert hosted.metric("dynamo_component_requests_total") == 1
    assert hosted.metric("dynamo_component_output_tokens_total") == 2
    assert hosted.metric("dynamo_component_cancellation_total") == 0


async def test_the_card_is_published_with_the_endpoint(host):
    engine = ScriptedEngine(config=EngineConfig(model="scripted", dp_size=2, context_length_tokens=77))
    hosted = await (await host(engine, model_aliases=["alias"], tool_call_parser="json")).ready()
    card = hosted.client.instances()[0].card
    assert (card.model, card.aliases, card.backend) == ("scripted", ["alias"], "scripted")
    assert (card.dp_size, card.context_length_tokens, card.tool_call_parser) == (2, 77, "json")


async def test_a_worker_is_not_ready_nor_seen_before_its_engine_is(host):
    loaded = asyncio.Event()
    hosted = await host(ScriptedEngine(start=loaded))
    await hosted.until(lambda: hosted.engine.calls)
    assert hosted.runtime.health.failing() == {"engine": "the engine is starting"}
    assert hosted.client.instances() == []
    loaded.set()
    await hosted.ready()
    await hosted.until(lambda: not hosted.runtime.health.failing())


async def test_a_stop_during_the_start_ends_it(host):
    hosted = await host(ScriptedEngine(start=asyncio.Event()))
    await hosted.until(lambda: hosted.engine.calls)
    hosted.runtime.stopping.set()
    await asyncio.wait_for(hosted.running, TIMEOUT)
    assert hosted.engine.calls == ["start", "cleanup"]


@pytest.mark.parametrize("error", [ConfigError("no such model"), EngineError("out of memory"), OSError("no driver")])
async def test_an_engine_that_cannot_start_ends_the_worker_with_its_reason(host, error):
    hosted = await host(ScriptedEngine(start=error))
    with pytest.raises(type(error), match=str(error)):
        await asyncio.wait_for(hosted.running, TIMEOUT)
    assert hosted.engine.calls == ["start", "cleanup"]
    assert hosted.client.instances() == []


async def test_a_stream_without_a_finish_reason_is_incomplete(host):
    hosted = await (await host(ScriptedEngine(LLMEngineOutput([5])))).ready()
    items = hosted.ask("r9")
    assert (await anext(items)).token_ids == [5]
    with pytest.raises(StreamIncomplete, match="engine scripted ended request r9 without a finish reason"):
        await anext(items)


@pytest.mark.parametrize("error", [InvalidRequest("too long", param="prompt"), EngineError("NaN"), Overloaded("full")])
async def test_an_error_of_one_request_is_its_own(host, error):
    hosted = await (await host(ScriptedEngine(LLMEngineOutput([5]), error))).ready()
    for _ in range(2):
        with pytest.raises(type(error), match=error.message) as caught:
            await hosted.outputs()
        assert caught.value.param == error.param
    assert not hosted.running.done()


async def test_cancelling_reaches_the_engine_as_abort(host):
    hosted = await (await host(ScriptedEngine(LLMEngineOutput([5]), asyncio.Event()))).ready()
    context = Context("r")
    items = hosted.ask("r", context)
    await anext(items)
    context.cancel()
    last = [output async for output in items]
    assert [output.finish_reason for output in last] == ["cancelled"]
    assert hosted.engine.calls[1:] == ["generate r", "abort r", "end r"]
    await hosted.until(lambda: hosted.metric("dynamo_component_cancellation_total") == 1)


async def test_leaving_the_stream_reaches_the_engine_as_abort(host):
    hosted = await (await host(ScriptedEngine(LLMEngineOutput([5]), asyncio.Event()))).ready()
    items = hosted.ask()
    await anext(items)
    await items.aclose()
    await hosted.until(lambda: "end r" in hosted.engine.calls)
    assert hosted.engine.calls.count("abort r") == 1


async def test_a_request_that_is_cancelled_before_it_begins_never_reaches_the_engine(host):
    hosted = await (await host(ScriptedEngine())).ready()
    context = Context("r")
    context.cancel()
    with pytest.raises(Cancelled):
        await anext(hosted.worker.generate(request(), context))
    assert hosted.engine.calls == ["start"]


async def test_a_stream_that_is_dropped_closes_the_engines_iterator_at_once(host):
    hosted = await (await host(ScriptedEngine(LLMEngineOutput([5]), asyncio.Event()))).ready()
    stream = hosted.worker.generate(request(), Context("r"))
    await anext(stream)
    await stream.aclose()
    assert hosted.engine.calls[-1] == "end r"


async def test_the_request_limit_of_a_worker(host):
    gate = asyncio.Event()
    hosted = await (await host(ScriptedEngine(LLMEngineOutput([5]), gate, LAST), engine_request_limit=1)).ready()
    first = hosted.ask("one")
    await anext(first)
    with pytest.raises(Overloaded, match="has 1 requests"):
        await hosted.outputs("two")
    gate.set()
    assert [output async for output in first] == [LAST]
    assert len(await hosted.outputs("three")) == 2


async def test_the_death_of_the_engine_ends_the_worker_with_the_engines_reason(host):
    hosted = await (await host(ScriptedEngine(LLMEngineOutput([5]), EngineShutdown("device lost")))).ready()
    with pytest.raises(EngineShutdown, match="device lost"):
        await hosted.outputs()
    with pytest.raises(EngineShutdown, match="device lost"):
        await asyncio.wait_for(hosted.running, TIMEOUT)
    assert hosted.engine.calls[-2:] == ["drain", "cleanup"]
    assert hosted.runtime.health.failing()["engine"] == "device lost"
    await hosted.until(lambda: not hosted.client.instances())


class MonitoredEngine(ScriptedEngine):
    def __init__(self) -> None:
        super().__init__()
        self.dead = asyncio.Event()

    async def failure(self) -> str:
        await self.dead.wait()
        return "killed while idle"


async def test_an_idle_engine_that_knows_of_its_death_ends_the_worker(host):
    hosted = await (await host(MonitoredEngine())).ready()
    assert len(await hosted.outputs()) == 3
    hosted.engine.dead.set()
    with pytest.raises(EngineShutdown, match="killed while idle"):
        await asyncio.wait_for(hosted.running, TIMEOUT)
    assert hosted.engine.calls[-1] == "cleanup"


async def test_an_engine_that_stops_because_the_worker_does_is_no_death(host):
    hosted = await (await host(ScriptedEngine(LLMEngineOutput([5]), asyncio.Event()), drain_grace_seconds=0)).ready()
    await anext(hosted.ask())
    hosted.runtime.stopping.set()
    await asyncio.wait_for(hosted.running, TIMEOUT)


async def test_stopping_withdraws_first_then_finishes_what_runs(host):
    gate = asyncio.Event()
    hosted = await (await host(ScriptedEngine(LLMEngineOutput([5]), gate, LAST))).ready()
    (record,) = hosted.client.instances()
    running = hosted.ask("running")
    await anext(running)
    hosted.runtime.stopping.set()
    await hosted.until(lambda: not hosted.client.instances())
    with pytest.raises(Draining):
        await anext(hosted.client.direct(record, request("late"), Context("late")))
    assert not hosted.running.done()
    gate.set()
    assert [output async for output in running] == [LAST]
    await asyncio.wait_for(hosted.running, TIMEOUT)
    assert hosted.engine.calls == ["start", "generate running", "end running", "drain", "cleanup"]


async def test_the_grace_of_a_drain_ends(host, caplog):
    hosted = await (await host(ScriptedEngine(LLMEngineOutput([5]), asyncio.Event()), drain_grace_seconds=0)).ready()
    await anext(hosted.ask())
    hosted.runtime.stopping.set()
    await asyncio.wait_for(hosted.running, TIMEOUT)
    assert "requests were still running 0 s after the stop signal" in caplog.text


class LoadedEngine(ScriptedEngine):
    """Says how busy it is."""

    def load(self):
        return [EngineLoad(dp_rank=rank, waiting_requests=rank + 1, total_kv_blocks=100) for rank in range(2)]


async def test_the_load_is_read_when_somebody_scrapes(host):
    hosted = await (await host(LoadedEngine())).ready()
    samples = {
        (sample.name, sample.labels.get("dp_rank")): sample.value
        for family in hosted.runtime.metrics.collect()
        for sample in family.samples
    }
    assert samples["dynamo_component_waiting_requests", "1"] == 2
    assert samples["dynamo_component_total_kv_blocks", "0"] == 100


async def test_the_files_of_the_card_are_served_by_hash_and_no_others(host):
    directory = demo_model_directory()
    config = EngineConfig(model="scripted", model_directory=directory)
    hosted = await (await host(ScriptedEngine(config=config))).ready()
    (record,) = hosted.client.instances()
    files = hosted.asking.client(ADDRESS._replace(endpoint=ARTIFACTS_ENDPOINT))
    record.endpoint = ARTIFACTS_ENDPOINT
    wanted = record.card.artifacts["tokenizer.json"]

    async def fetch(sha256: str) -> bytes:
        return b"".join([piece async for piece in files.direct(record, ArtifactRequest(sha256), Context("f"), bytes)])

    data = await fetch(wanted.sha256)
    assert len(data) == wanted.size_bytes
    assert data == (directory / "tokenizer.json").read_bytes()
    for unknown in ("0" * 64, "../../etc/passwd", ""):
        with pytest.raises(InvalidRequest, match="no artifact with sha256"):
            await fetch(unknown)
