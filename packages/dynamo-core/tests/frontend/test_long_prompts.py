"""Prompts that are tokenized beside the event loop: bounded, counted from their arrival, dropped with their client."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from dynamo.errors import Overloaded
from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.preparation import Preparations
from dynamo.frontend.token_inputs import encode_texts
from dynamo.preprocessor.tokenizer import in_encode_thread
from dynamo.runtime.http import LocalExchange

CHAT = "/v1/chat/completions"
LONG = "alpha beta gamma delta " * 40_000


def chat(content):
    return {"model": "echo", "messages": [{"role": "user", "content": content}], "max_tokens": 1}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, chat(LONG), "messages"),
        (CHAT, chat("<|user|>" * 100_000), "messages"),
        ("/v1/completions", {"model": "echo", "prompt": LONG}, "prompt"),
        ("/v1/completions", {"model": "echo", "prompt": ["x", LONG]}, "prompt"),
        ("/v1/embeddings", {"model": "echo", "input": LONG}, "input"),
    ],
)
async def test_what_cannot_fit_is_refused_by_name(echo, path, body, param):
    answer = await echo.client.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)
    assert "in 9" in error["message"] or "in 8" in error["message"]  # characters: it was not encoded


class Work:
    """Preparations whose end a test decides."""

    def __init__(self) -> None:
        self.metrics = FrontendMetrics(CollectorRegistry())
        self.preparations = Preparations(self.metrics)
        self.done: list[str] = []

    def begin(self, size=10):
        exchange = LocalExchange("POST", CHAT, b"x" * size)
        ready = asyncio.get_running_loop().create_future()

        async def work():
            return await ready

        self.preparations.begin(exchange, "chat_completions", work(), self.done.append)
        return exchange, ready

    def counted(self):
        return self.metrics.open_requests, self.metrics.preparing_bytes


async def test_a_request_counts_as_open_while_it_is_prepared():
    work = Work()
    _, first = work.begin()
    _, second = work.begin(5)
    assert work.counted() == (2, 15)
    first.set_result("first")
    second.set_result("second")
    while len(work.done) < 2:
        await asyncio.sleep(0)
    assert work.counted() == (0, 0)


async def test_a_client_that_goes_takes_its_work_along():
    work = Work()
    exchange, ready = work.begin()
    # The other one has not even begun when its client goes.
    late, _ = work.begin()
    late.lose()
    await asyncio.sleep(0)
    exchange.lose()
    while not ready.cancelled():
        await asyncio.sleep(0)
    await work.preparations.close()
    await asyncio.sleep(0)
    assert work.counted() == (0, 0)
    assert work.done == []
    given_up = work.metrics.requests.labels("", "chat_completions", "", "499", "cancelled")
    assert next(sample.value for metric in given_up.collect() for sample in metric.samples) == 2


async def test_a_failure_is_answered_and_counted():
    work = Work()
    exchange, ready = work.begin()
    ready.set_exception(KeyError("unforeseen"))
    assert (await exchange.response()).status == 500
    assert work.counted() == (0, 0)


async def test_beyond_the_limit_requests_are_told_to_come_again():
    work = Work()
    _, first = work.begin(100 << 20)  # the first one always may
    with pytest.raises(Overloaded) as caught:
        work.begin()
    assert caught.value.retry_after_seconds
    assert work.metrics.open_requests == 1
    first.set_result("first")
    while work.metrics.open_requests:
        await asyncio.sleep(0)
    work.begin()
    await work.preparations.close()
    assert work.counted() == (0, 0)


async def test_prompts_that_are_still_tokenized_count_against_the_limit(make_deployment):
    argv = ["--max-model-len", "1000000", "--num-blocks", "100000"]
    deployment = await make_deployment({"backend": "echo", "argv": argv}, max_inflight_requests=1)
    await deployment.serves("echo")
    metrics = deployment.frontend._pipeline._metrics
    first = asyncio.create_task(deployment.client.post(CHAT, json=chat(LONG)))
    await deployment.until(lambda: metrics.preparing_bytes)
    second = await deployment.client.post(CHAT, json=chat("hi"))
    assert (second.status_code, second.headers["retry-after"]) == (503, "1")
    assert (await first).status_code == 200
    await deployment.until(lambda: not metrics.open_requests)


class SlowTokenizer:
    """Encodes a text when the test lets it, and counts."""

    inline_characters = 0

    def __init__(self) -> None:
        self.goes_on = threading.Semaphore(0)
        self.begun = 0

    def encode(self, text, *, add_special_tokens=False):
        self.begun += 1
        assert self.goes_on.acquire(timeout=20)
        return np.zeros(len(text), np.uint32)


async def test_texts_that_nobody_waits_for_are_not_encoded():
    tokenizer = SlowTokenizer()
    task = asyncio.create_task(encode_texts(tokenizer, ["text"] * 5, add_special_tokens=True))
    while not tokenizer.begun:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    tokenizer.goes_on.release(5)
    both_free = threading.Barrier(2, timeout=20)  # the pool has two threads
    await asyncio.gather(in_encode_thread(both_free.wait), in_encode_thread(both_free.wait))
    assert tokenizer.begun == 1
