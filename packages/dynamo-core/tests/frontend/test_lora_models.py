"""LoRA adapters as models: listed, called at every endpoint, routed to who holds them, gone when nobody does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import msgspec
import pytest

from dynamo.echo.engine import EchoEngine
from dynamo.errors import InvalidRequest
from dynamo.protocols.engine import EngineOptions
from dynamo.reference import demo_model_directory
from dynamo.testing.lora_adapters import write_lora_adapter

ALL, BASE_ONLY, TUNED_ONLY = "sk-every-model", "sk-base-model-only", "sk-tuned-model-only"
PROMPT = "The quick brown fox jumps over the lazy dog. " * 3


class AdapterEcho(EchoEngine):
    """Echoes for any adapter that it was told of, and counts the requests for adapters."""

    def __init__(self, *argv: str) -> None:
        super().__init__(EngineOptions(served_model_name="echo", argv=argv))
        self.names: list[str] = []
        self.asked = 0

    async def start(self):
        config = await super().start()
        config.capabilities = msgspec.structs.replace(config.capabilities, lora=True)
        return config

    async def generate(self, request, context):
        if request.lora is not None:
            if request.lora not in self.names:
                raise InvalidRequest(f"no {request.lora}")
            self.asked += 1
        async for output in super().generate(msgspec.structs.replace(request, lora=None), context):
            yield output

    async def load_lora(self, name, path) -> None:
        self.names.append(name)

    async def unload_lora(self, name) -> None:
        self.names.remove(name)

    def loras(self):
        return self.names


class Adapters:
    """A deployment whose workers have system ports, and the directory of adapters that they may load."""

    def __init__(self, deployment, root: Path) -> None:
        self.deployment = deployment
        self.root = root
        self.runtimes = []
        deployment.settings = deployment.settings.model_copy(update={"system_port": 0})

    async def add(self, engine=None, **settings):
        """One more worker, of the demo model unless it is told which engine."""
        settings = {"lora_enabled": True, "lora_path": str(self.root), **settings}
        made = (
            self.deployment.add_worker("reference", name="demo", **settings)
            if engine is None
            else self.deployment.add_engine(engine, **settings)
        )
        runtime = await made
        self.runtimes.append(runtime)
        await self.deployment.serves("demo" if engine is None else "echo", len(self.runtimes))

    async def load(self, worker: int, name: str, seed: int = 1) -> httpx.Response:
        directory = write_lora_adapter(self.root / f"{name}-{seed}", demo_model_directory(), seed=seed)
        body = {"lora_name": name, "source": {"uri": directory.as_uri()}}
        return await self._system(worker, "POST", "", body)

    async def unload(self, worker: int, name: str) -> httpx.Response:
        return await self._system(worker, "DELETE", f"/{name}")

    async def _system(self, worker: int, method: str, path: str, body=None) -> httpx.Response:
        port = self.runtimes[worker].system_server.port
        async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
            answer = await client.request(method, f"http://127.0.0.1:{port}/v1/loras{path}", json=body)
        return answer.raise_for_status()

    async def listed(self, **headers) -> dict[str, dict]:
        models = (await self.deployment.client.get("/v1/models", headers=headers)).json()["data"]
        return {model["id"]: model for model in models}

    async def until_listed(self, *names: str) -> None:
        await self.deployment.until(lambda: set(self.deployment.frontend.models.names()) == set(names))

    def requests(self, worker: int) -> float:
        registry = self.runtimes[worker].metrics
        name = "dynamo_component_requests_total"
        return sum(s.value for m in registry.collect() for s in m.samples if s.name == name)

    async def ask(self, path: str, status: int = 200, **body) -> dict:
        answer = await self.deployment.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture
async def adapters(make_deployment, tmp_path):
    async def make(**frontend) -> Adapters:
        (tmp_path / "loras").mkdir(exist_ok=True)
        return Adapters(await make_deployment(**frontend), tmp_path / "loras")

    return make


async def test_an_adapter_is_a_model_at_every_endpoint(adapters) -> None:
    made = await adapters(router={"router_mode": "kv"})
    for _ in range(2):
        await made.add()
    await made.load(1, "org/tuned")
    await made.until_listed("demo", "org/tuned")

    listed = await made.listed()
    assert {name: (model["root"], model["parent"]) for name, model in listed.items()} == {
        "demo": ("demo", None),
        "org/tuned": ("demo", "demo"),
    }
    ready = await made.deployment.client.get("/v1/models/org/tuned/ready")
    assert ready.json() == {"id": "org/tuned", "ready": True, "workers": 1}
    assert (await made.deployment.client.get("/v1/models/org/tuned")).json() == listed["org/tuned"]

    messages = [{"role": "user", "content": PROMPT}]
    greedy = {"temperature": 0, "max_tokens": 8}

    async def answers(model: str) -> list[object]:
        chat = await made.ask("/v1/chat/completions", model=model, messages=messages, **greedy)
        text = await made.ask("/v1/completions", model=model, prompt=PROMPT, **greedy)
        response = await made.ask(
            "/v1/responses", model=model, input=PROMPT, temperature=0, max_output_tokens=8, store=False
        )
        message = await made.ask("/v1/messages", model=model, messages=messages, **greedy)
        vectors = await made.ask("/v1/embeddings", model=model, input="one")
        assert {a["model"] for a in (chat, text, response, message, vectors)} == {model}
        assert text["usage"]["prompt_tokens_details"]["cached_tokens"] == 0 or model == "demo"
        return [
            chat["choices"][0]["message"]["content"],
            text["choices"][0]["text"],
            response["output"][0]["content"][0]["text"],
            message["content"][0]["text"],
            vectors["data"][0]["embedding"],
        ]

    base = await answers("demo")
    before = [made.requests(worker) for worker in (0, 1)]
    tuned = await answers("org/tuned")
    assert all(one != other for one, other in zip(base, tuned, strict=True))
    assert [made.requests(worker) - old for worker, old in zip((0, 1), before, strict=True)] == [0, 5]
    again = await made.ask("/v1/completions", model="org/tuned", prompt=PROMPT, **greedy)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    tokens = await made.ask("/tokenize", model="org/tuned", prompt=PROMPT)
    assert tokens == await made.ask("/tokenize", prompt=PROMPT)  # of the only model that is served
    metrics = (await made.deployment.client.get("/metrics")).text
    assert 'dynamo_frontend_requests_total{endpoint="embeddings",error_type="",model="org/tuned"' in metrics


async def test_it_vanishes_with_its_last_holder(adapters) -> None:
    made = await adapters(migration_wait_seconds=0)
    for _ in range(2):
        await made.add()
    for worker in (0, 1):
        await made.load(worker, "tuned")
    await made.until_listed("demo", "tuned")
    await made.unload(0, "tuned")
    ask = {"model": "tuned", "prompt": "x", "max_tokens": 1}
    for _ in range(4):  # the round-robin turn of each worker
        await made.ask("/v1/completions", **ask)
    assert made.requests(0) == 0
    await made.unload(1, "tuned")
    await made.until_listed("demo")
    gone = await made.deployment.client.post("/v1/completions", json=ask)
    assert (gone.status_code, gone.headers["retry-after"]) == (503, "2")
    assert (await made.deployment.client.get("/v1/models/tuned/ready")).status_code == 503
    assert (await made.ask("/v1/completions", 404, model="other", prompt="x"))["error"]["code"] == "model_not_found"
    assert (await made.ask("/v1/completions", model="demo", prompt="x", max_tokens=1))["model"] == "demo"
    await made.load(0, "tuned", seed=2)
    await made.until_listed("demo", "tuned")
    await made.ask("/v1/completions", **ask)
    await made.deployment.stop(made.runtimes[0])
    await made.until_listed("demo")
    assert (await made.deployment.client.post("/v1/completions", json=ask)).status_code == 503


async def test_a_key_is_for_the_adapters_that_it_names(adapters, tmp_path) -> None:
    keys = [
        {"name": "all", "key": ALL},
        {"name": "base", "key": BASE_ONLY, "models": ["demo"]},
        {"name": "tuned", "key": TUNED_ONLY, "models": ["tuned"]},
    ]
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(keys))
    path.chmod(0o600)
    made = await adapters(api_key_file=str(path))
    await made.add()
    await made.load(0, "tuned")
    await made.until_listed("demo", "tuned")
    for key, models in ((ALL, {"demo", "tuned"}), (BASE_ONLY, {"demo"}), (TUNED_ONLY, {"tuned"})):
        headers = {"authorization": f"Bearer {key}"}
        assert set(await made.listed(**headers)) == models
        for model in ("demo", "tuned"):
            body = {"model": model, "prompt": "x", "max_tokens": 1}
            answer = await made.deployment.client.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == (200 if model in models else 404)


async def test_streams_move_only_to_workers_that_hold_the_adapter(adapters) -> None:
    made = await adapters(router={"router_mode": "round-robin"})
    engines = [AdapterEcho("--tokens-per-second", "50") for _ in range(3)]
    for engine in engines:
        await made.add(engine)
    for worker in (0, 2):
        await made.load(worker, "tuned")
    await made.until_listed("echo", "tuned")
    prompt = " ".join(f"word{number}" for number in range(20))
    body = {"model": "tuned", "prompt": prompt}
    answer = asyncio.create_task(made.deployment.client.post("/v1/completions", json=body))
    await made.deployment.until(lambda: any(engine._step >= 5 for engine in engines))
    (first,) = (index for index, engine in enumerate(engines) if engine.asked)
    for connection in list(made.runtimes[first]._plane_server.connections):
        connection._transport.abort()
    assert (await answer).json()["choices"][0]["text"] == prompt
    assert [engine.asked for engine in engines] == [1, 0, 1]


async def test_an_adapter_that_left_a_moment_ago_is_looked_for_elsewhere(adapters) -> None:
    """The frontend has not heard yet that a worker no longer holds it."""
    made = await adapters(router={"router_mode": "round-robin"})
    engines = [AdapterEcho() for _ in range(2)]
    for worker, engine in enumerate(engines):
        await made.add(engine)
        await made.load(worker, "tuned")
    await made.until_listed("echo", "tuned")
    engines[0].names.clear()
    for _ in range(4):
        answer = await made.ask("/v1/completions", model="tuned", prompt="one two")
        assert answer["choices"][0]["text"] == "one two"
    assert [engine.asked for engine in engines] == [0, 4]


async def test_models_are_not_hidden_by_adapters_of_their_name(adapters) -> None:
    made = await adapters()
    engine = AdapterEcho()
    await made.add(engine)
    await made.load(0, "other")
    await made.until_listed("echo", "other")
    await made.deployment.add_worker("echo", name="other")
    await made.deployment.until(lambda: made.deployment.frontend.models.names()["other"].lora is None)
    answer = await made.ask("/v1/completions", model="other", prompt="one two")
    assert (answer["model"], engine.asked) == ("other", 0)
    assert (await made.listed())["other"]["parent"] is None
