"""``/v1/loras`` on the system port of a real worker with the reference engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from pathlib import Path

import httpx
import pytest

from dynamo.errors import ConfigError
from dynamo.plugins import plugins
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.lora import lora_id_of
from dynamo.reference import demo_model_directory
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.http import HttpServer
from dynamo.runtime.settings import RuntimeSettings
from dynamo.runtime.system_access import SystemAccess
from dynamo.testing.lora_adapters import write_lora_adapter
from dynamo.worker.host import Worker
from dynamo.worker.lora_pages import LoraPages
from dynamo.worker.loras import LoraAdapters
from dynamo.worker.settings import WorkerSettings

TIMEOUT = 20.0


class Running:
    """A worker and a client of its system port."""

    def __init__(self, directory: Path, backend: str = "reference", **settings) -> None:
        self.root = directory / "loras"
        self.root.mkdir(exist_ok=True)
        self.runtime = DistributedRuntime(
            RuntimeSettings(
                discovery_backend=f"memory://{uuid.uuid4().hex}",
                state_dir=str(directory),
                plane_secret="s",
                event_plane="",
                system_port=0,
            )
        )
        engine = plugins().engines.get(backend)(EngineOptions(served_model_name="demo"))
        made = WorkerSettings(lora_path=str(self.root), drain_grace_seconds=0, **settings)
        self.worker = Worker(engine, backend, made, self.runtime)

    async def __aenter__(self):
        await self.runtime.start()
        self.task = asyncio.create_task(self.worker.run())
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.runtime.system_server.port}", timeout=TIMEOUT, trust_env=False
        )

        async def announced():
            while not self.runtime.instances.all() and not self.task.done():
                await asyncio.sleep(0.005)

        await asyncio.wait_for(announced(), TIMEOUT)
        return self

    async def __aexit__(self, *_) -> None:
        self.runtime.stopping.set()
        await self.client.aclose()
        await asyncio.wait_for(asyncio.gather(self.task, return_exceptions=True), TIMEOUT)
        await self.runtime.close()

    def adapter(self, name: str, **options) -> str:
        return write_lora_adapter(self.root / name, demo_model_directory(), **options).as_uri()

    async def load(self, name: str, uri: str):
        return await self.client.post("/v1/loras", json={"lora_name": name, "source": {"uri": uri}})

    async def announced(self) -> list[str]:
        (record,) = await self.runtime.discovery.list()
        return record.card.loras


@pytest.fixture
async def start(tmp_path):
    async with contextlib.AsyncExitStack() as stack:

        async def make(backend: str = "reference", **settings) -> Running:
            settings.setdefault("lora_enabled", True)
            return await stack.enter_async_context(Running(tmp_path, backend, **settings))

        yield make


async def test_adapters_are_listed_loaded_and_unloaded(start, tmp_path) -> None:
    early = write_lora_adapter(tmp_path / "early", demo_model_directory())
    worker = await start(lora_modules=[f"early={early}"])
    assert await worker.announced() == ["early"]
    loaded = await worker.load("org/late", worker.adapter("late", seed=1))
    assert (loaded.status_code, loaded.json()) == (
        200,
        {
            "status": "success",
            "message": "'org/late' is loaded",
            "lora_name": "org/late",
            "lora_id": lora_id_of("org/late"),
        },
    )
    assert await worker.announced() == ["early", "org/late"]
    assert (await worker.client.get("/v1/loras")).json() == {
        "status": "success",
        "loras": {"early": lora_id_of("early"), "org/late": lora_id_of("org/late")},
        "count": 2,
    }
    for path in ("/v1/loras/org/late", "/v1/loras/early"):
        unloaded = await worker.client.delete(path)
        assert (unloaded.status_code, unloaded.json()["status"]) == (200, "success")
    assert await worker.announced() == []
    assert (await worker.client.get("/v1/loras")).json()["count"] == 0


async def test_refusals(start) -> None:
    worker = await start(model_aliases=["nick"])
    good = worker.adapter("good")
    assert (await worker.load("good", good)).status_code == 200
    corrupt = worker.root / "corrupt"
    worker.adapter("corrupt")
    (corrupt / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
    no_json = worker.root / "no-json"
    worker.adapter("no-json")
    (no_json / "adapter_config.json").write_text("{")
    misshapen = worker.root / "misshapen"
    worker.adapter("misshapen")
    settings = json.loads((misshapen / "adapter_config.json").read_text())
    (misshapen / "adapter_config.json").write_text(json.dumps({**settings, "r": 5}))
    cases = [
        ("corrupt", corrupt.as_uri(), 400, "safetensors"),
        ("no-json", no_json.as_uri(), 400, "adapter configuration"),
        ("misshapen", misshapen.as_uri(), 400, "rank 5"),
        ("high", worker.adapter("high", rank=65), 400, "rank 65"),
        ("good", worker.adapter("other"), 409, "another LoRA named 'good'"),
        ("demo", good, 409, "the model itself"),
        ("nick", good, 409, "the model itself"),
        ("out", "file:///etc", 400, "only from below"),
        ("remote", "s3://bucket/adapter", 400, "from s3"),
        ("no name", good, 400, "not a valid name"),
    ]
    for name, uri, status, message in cases:
        answer = await worker.load(name, uri)
        assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text
    for body in (b"", b"{", b"[]", b'{"lora_name": "a"}', b'{"lora_name": 1, "source": {"uri": ""}}', b"\xff"):
        answer = await worker.client.post("/v1/loras", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert (await worker.client.post("/v1/loras", content=b" " * (17 << 10))).status_code == 413
    missing = await worker.client.delete("/v1/loras/none")
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "lora_name")
    assert (await worker.client.delete("/v1/loras")).status_code == 405
    assert await worker.announced() == ["good"]


async def test_web_pages_cannot_reach_it(start) -> None:
    """A page that is open in a browser of this machine may send requests to its ports."""
    worker = await start()
    page = {"origin": "http://evil.example"}
    uri = worker.adapter("good")
    body = {"lora_name": "a", "source": {"uri": uri}}
    assert (await worker.client.post("/v1/loras", json=body, headers=page)).status_code == 401
    assert (await worker.client.get("/v1/loras", headers=page)).status_code == 401
    assert await worker.announced() == []


async def test_it_is_off_unless_enabled(start) -> None:
    worker = await start(lora_enabled=False)
    assert (await worker.client.get("/v1/loras")).status_code == 404


async def test_an_engine_without_adapters_has_no_pages(start) -> None:
    worker = await start("echo")
    assert (await worker.client.get("/v1/loras")).status_code == 404


async def test_configured_adapters_need_an_engine_that_takes_them(tmp_path) -> None:
    worker = Running(tmp_path, "echo", lora_modules=["a=/x"])
    async with worker:
        with pytest.raises(ConfigError, match="engine echo takes no LoRA adapters"):
            await asyncio.wait_for(worker.task, TIMEOUT)


class SlowHost:
    """An engine whose adapter is in use until `free`."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.names = ["busy"]

    async def load_lora(self, name, path) -> None:
        self.names.append(name)

    async def unload_lora(self, name) -> None:
        await self.free.wait()
        self.names.remove(name)

    def loras(self):
        return self.names


@pytest.fixture
async def serve_pages(tmp_path):
    """The pages alone, over an engine and with an access of the test's choice."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(host, access: SystemAccess, answer_seconds: float = TIMEOUT) -> httpx.AsyncClient:
            adapters = LoraAdapters(host, WorkerSettings(lora_path=str(tmp_path)), [])
            pages = LoraPages(adapters, access, answer_seconds=answer_seconds)
            server = HttpServer()
            pages.install(server)
            port = await server.listen("127.0.0.1", 0)
            stack.push_async_callback(server.close)
            stack.push_async_callback(pages.close)
            return await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT, trust_env=False)
            )

        yield make


async def test_a_change_that_takes_long_goes_on_by_itself(serve_pages) -> None:
    host = SlowHost()
    client = await serve_pages(host, SystemAccess("127.0.0.1", b""), answer_seconds=0.01)
    pending = await client.delete("/v1/loras/busy")
    assert (pending.status_code, pending.json()["status"]) == (202, "pending")
    again = await client.delete("/v1/loras/busy")
    assert (again.status_code, again.headers["retry-after"]) == (503, "1")
    host.free.set()
    await asyncio.wait_for(_until(lambda: host.names == []), TIMEOUT)
    assert (await client.delete("/v1/loras/busy")).status_code == 404


async def _until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("host", "secret", "insecure", "sent", "status"),
    [
        ("0.0.0.0", b"s3cret", False, None, 401),
        ("0.0.0.0", b"s3cret", False, "Bearer wrong", 401),
        ("0.0.0.0", b"s3cret", False, "Basic s3cret", 401),
        ("0.0.0.0", b"", False, "Bearer", 401),
        ("0.0.0.0", b"s3cret", False, "Bearer \xff", 401),
        ("0.0.0.0", b"s3cret", False, "Bearer s3cret", 200),
        ("0.0.0.0", b"s3cret", False, "bearer s3cret", 200),
        ("0.0.0.0", b"s3cret", True, None, 200),
        ("localhost", b"s3cret", False, None, 200),
        ("127.0.0.1", b"", False, None, 200),
    ],
)
async def test_where_others_can_reach_the_port_the_secret_is_needed(
    serve_pages, host, secret, insecure, sent, status
) -> None:
    client = await serve_pages(SlowHost(), SystemAccess(host, secret, insecure=insecure))
    headers = {} if sent is None else {"authorization": sent.encode("latin-1")}
    answers = [
        await client.get("/v1/loras", headers=headers),
        await client.post("/v1/loras", headers=headers, content=b"{"),
        await client.delete("/v1/loras/none", headers=headers),
    ]
    assert [answer.status_code for answer in answers] == ([401] * 3 if status == 401 else [200, 400, 404])
