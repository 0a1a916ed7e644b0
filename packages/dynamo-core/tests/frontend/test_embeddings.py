"""``/v1/embeddings``: vectors in order, on the engines that can, from another worker when one is lost."""

from __future__ import annotations

import asyncio
import base64

import msgspec
import numpy as np
import openai
import pytest

from dynamo.echo.engine import EchoEngine
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.llm import LLMEngineOutput

EMBEDDINGS = "/v1/embeddings"


class WithoutEmbeddings(EchoEngine):
    async def start(self):
        config = await super().start()
        config.capabilities = msgspec.structs.replace(config.capabilities, embeddings=False)
        return config


class Holding(EchoEngine):
    """Answers nothing until it is told to stop."""

    def __init__(self, options):
        super().__init__(options)
        self.held = 0
        self.most_held = 0

    async def generate(self, request, context):
        self.held += 1
        self.most_held = max(self.held, self.most_held)
        await context.wait_cancelled()
        self.held -= 1
        yield LLMEngineOutput(finish_reason="cancelled")


def vectors(response):
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data])


async def embed(deployment, wanted, **fields):
    return await deployment.client.post(EMBEDDINGS, json={"model": "echo", "input": wanted, **fields})


async def test_a_text_and_a_list_of_one_are_the_same(echo):
    one, many = await embed(echo, "hello world"), await embed(echo, ["hello world"])
    assert np.array_equal(vectors(one), vectors(many))
    body = one.json()
    assert (body["object"], body["model"]) == ("list", "echo")
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0


async def test_the_order_of_inputs_is_the_order_of_vectors(echo):
    texts = [f"text number {index}" for index in range(100)]
    together = vectors(await embed(echo, texts))
    alone = [vectors(await embed(echo, texts[index]))[0] for index in (0, 57, 99)]
    assert np.array_equal(together[[0, 57, 99]], alone)
    assert len(np.unique(together, axis=0)) == 100


async def test_token_ids_embed_like_their_text(echo):
    ids = (await echo.client.post("/tokenize", json={"prompt": "hello world"})).json()["tokens"]
    text = await embed(echo, "hello world")
    assert np.array_equal(vectors(await embed(echo, ids)), vectors(text))
    assert np.array_equal(vectors(await embed(echo, [ids, ids])), np.repeat(vectors(text), 2, axis=0))
    assert text.json()["usage"]["prompt_tokens"] == len(ids)


async def test_base64_is_the_same_vector(echo):
    plain = vectors(await embed(echo, "hi"))[0]
    packed = (await embed(echo, "hi", encoding_format="base64")).json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), plain.astype("f4"))


async def test_the_reference_engine_embeds_by_meaning_of_the_model(demo):
    response = await demo.client.post(EMBEDDINGS, json={"model": "demo", "input": ["red", "red", "a long other text"]})
    first, same, other = vectors(response)
    assert np.allclose(first, same, atol=1e-5)
    assert not np.allclose(first, other, atol=1e-2)


async def test_the_openai_client_reads_it(echo):
    base_url = f"http://127.0.0.1:{echo.frontend.server.port}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        answer = await client.embeddings.create(model="echo", input=["one", "two"])
    expected = vectors(await embed(echo, ["one", "two"]))
    assert np.allclose([item.embedding for item in answer.data], expected)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens


BAD = {
    "unknown model": ({"model": "nope", "input": "x"}, 404, "model_not_found", "model"),
    "no model": ({"input": "x"}, 400, "invalid_request", "model"),
    "no input": ({"model": "echo"}, 400, "invalid_request", "input"),
    "input is null": ({"model": "echo", "input": None}, 400, "invalid_request", "input"),
    "input is a number": ({"model": "echo", "input": 3}, 400, "invalid_request", "input"),
    "empty list": ({"model": "echo", "input": []}, 400, "invalid_request", "input"),
    "empty text": ({"model": "echo", "input": ""}, 400, "invalid_request", "input"),
    "empty text among others": ({"model": "echo", "input": ["a", ""]}, 400, "invalid_request", "input"),
    "empty token list": ({"model": "echo", "input": [[1], []]}, 400, "invalid_request", "input"),
    "texts and ids": ({"model": "echo", "input": ["a", 1]}, 400, "invalid_request", "input"),
    "negative id": ({"model": "echo", "input": [-1]}, 400, "invalid_request", "input"),
    "id beyond the vocabulary": ({"model": "echo", "input": [[10**7]]}, 400, "invalid_request", "input"),
    "id beyond 64 bits": ({"model": "echo", "input": [2**70]}, 400, "invalid_request", None),
    "fraction": ({"model": "echo", "input": [1.5]}, 400, "invalid_request", "input[0]"),
    "nested too deep": ({"model": "echo", "input": [[[1]]]}, 400, "invalid_request", None),
    "dimensions": ({"model": "echo", "input": "x", "dimensions": 8}, 400, "invalid_request", "dimensions"),
    "encoding": ({"model": "echo", "input": "x", "encoding_format": "hex"}, 400, "invalid_request", "encoding_format"),
    "priority": ({"model": "echo", "input": "x", "priority": 2**70}, 400, "invalid_request", "priority"),
    "too many": ({"model": "echo", "input": ["x"] * 9}, 400, "invalid_request", "input"),
    "too long": ({"model": "echo", "input": ["x", "word " * 9000]}, 400, "context_length_exceeded", "input"),
    "too many ids": ({"model": "echo", "input": [5] * 5000}, 400, "context_length_exceeded", "input"),
}


async def test_malformed_requests_are_refused_with_their_field(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, max_embedding_inputs=8)
    await deployment.serves("echo")
    wrong = []
    for name, (body, status, code, param) in BAD.items():
        response = await deployment.client.post(EMBEDDINGS, json=body)
        error = response.json().get("error", {})
        got = (response.status_code, error.get("code"), error.get("param") if param else None)
        if got != (status, code, param):
            wrong.append(f"{name}: expected {(status, code, param)}, got {got}: {error.get('message')}")
    assert not wrong, "\n".join(wrong)
    assert (await embed(deployment, ["x"] * 8)).status_code == 200


async def test_a_model_without_embeddings_is_refused_by_name(make_deployment):
    deployment = await make_deployment()
    await deployment.add_engine(WithoutEmbeddings(EngineOptions()))
    await deployment.serves("echo")
    error = (await embed(deployment, "x")).json()["error"]
    assert (error["param"], error["code"]) == ("model", "invalid_request")
    assert "'echo' has no embeddings" in error["message"]


async def test_inputs_of_a_worker_that_drains_go_to_another(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, {"backend": "echo"})
    await deployment.serves("echo", workers=2)
    await deployment.engines[0].drain(0)
    assert len(vectors(await embed(deployment, [f"text {index}" for index in range(20)]))) == 20
    assert 'dynamo_frontend_migrations_total{model="echo"}' in (await deployment.client.get("/metrics")).text


async def test_without_another_worker_the_error_is_seen(echo):
    await echo.engines[0].drain(0)
    response = await embed(echo, ["a", "b"])
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "draining"
    await echo.until(lambda: echo.frontend.models.get("echo").candidates._ordered[0].active_requests == 0)


async def test_a_client_that_leaves_frees_the_engine(make_deployment):
    deployment = await make_deployment(embedding_concurrency=4)
    engine = Holding(EngineOptions())
    await deployment.add_engine(engine)
    await deployment.serves("echo")
    request = asyncio.create_task(embed(deployment, [f"text {index}" for index in range(30)]))
    await deployment.until(lambda: engine.held == 4)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await deployment.until(lambda: engine.held == 0)
    assert engine.most_held == 4
    assert not deployment.frontend._embeddings._tasks
    metrics = (await deployment.client.get("/metrics")).text
    assert 'dynamo_frontend_cancellations_total{model="echo"} 1.0' in metrics
    assert 'dynamo_frontend_inflight_requests{model="echo"} 0.0' in metrics


async def test_a_frontend_that_is_full_refuses(make_deployment):
    deployment = await make_deployment(max_inflight_requests=1)
    engine = Holding(EngineOptions())
    await deployment.add_engine(engine)
    await deployment.serves("echo")
    first = asyncio.create_task(embed(deployment, "x"))
    await deployment.until(lambda: engine.held == 1)
    assert (await embed(deployment, "y")).status_code == 503
    first.cancel()
    await deployment.until(lambda: engine.held == 0)


async def test_requests_are_counted_and_logged(make_deployment, tmp_path):
    log = tmp_path / "access.jsonl"
    deployment = await make_deployment({"backend": "echo"}, access_log=str(log))
    await deployment.serves("echo")
    tokens = (await embed(deployment, ["hello", "world"])).json()["usage"]["prompt_tokens"]
    await deployment.close()
    (line,) = [msgspec.json.decode(line) for line in log.read_bytes().splitlines()]
    assert (line["endpoint"], line["status"], line["prompt_tokens"]) == ("embeddings", 200, tokens)
