"""The adapter around a vLLM engine that runs: what it computes, and how its errors look. `nox -s "engine(vllm)"`."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import psutil
import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from dynamo.errors import EngineShutdown, InvalidRequest
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.llm import (
    GuidedDecoding,
    SamplingOptions,
    StopConditions,
)
from dynamo.reference import demo_model_directory
from dynamo.reference.engine import ReferenceEngine
from dynamo.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("default"),
]

FLAGS = ("--kv-cache-memory-bytes=16777216", "--max-model-len=1024")
QUESTIONS = ["What is 7 plus 6?", "What is the capital of Norway?", "What is the weather in Oslo?", "Tell me a story."]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm(running):
    async with running(VllmEngine(EngineOptions(argv=FLAGS))) as engine:
        yield engine


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_model_directory() / "tokenizer.json"))


def chat(tokenizer: Tokenizer, question: str) -> list[int]:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(text, add_special_tokens=False).ids


async def test_the_engine_says_what_it_is(vllm):
    config = vllm.config
    assert (config.model, config.model_directory) == ("dynamo-demo", demo_model_directory())
    assert (config.context_length_tokens, config.block_size_tokens, config.dtype) == (1024, 32, "float32")
    assert config.capabilities.kv_events
    assert config.capabilities.load
    assert not config.capabilities.lora
    assert config.tool_call_parser == "hermes"


async def test_greedy_text_is_that_of_the_reference_engine(running, vllm, tokenizer):
    async with running(ReferenceEngine(EngineOptions())) as reference:
        for question in QUESTIONS:
            ids = chat(tokenizer, question)
            expected, last = await reference.run(ids, stop=StopConditions(max_tokens=48))
            got, vllm_last = await vllm.run(ids, stop=StopConditions(max_tokens=48))
            assert tokenizer.decode(got) == tokenizer.decode(expected)
            assert vllm_last.finish_reason == last.finish_reason


async def test_a_stream_goes_on_where_another_worker_stopped(vllm, tokenizer):
    ids = chat(tokenizer, QUESTIONS[3])
    options = SamplingOptions(temperature=0.0, frequency_penalty=0.7)
    whole, _ = await vllm.run(ids, sampling=options, stop=StopConditions(max_tokens=24, ignore_eos=True))
    assert len(whole) == 24
    rest, last = await vllm.run(
        ids + whole[:9], sampling=options, prior_output_tokens=9, stop=StopConditions(max_tokens=15, ignore_eos=True)
    )
    assert whole[:9] + rest == whole
    assert last.usage is not None
    assert last.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize(
    ("guided", "check"),
    [
        (GuidedDecoding("choice", '["tea", "coffee"]'), lambda text: text in ("tea", "coffee")),
        (GuidedDecoding("regex", "[0-9]{3}-[0-9]{2}"), lambda text: len(text) == 6 and text[3] == "-"),
        (GuidedDecoding("json", '{"type": "array", "items": {"type": "boolean"}, "maxItems": 2}'), json.loads),
        (GuidedDecoding("grammar", 'root ::= "yes " ("sir" | "madam")'), lambda text: text.startswith("yes ")),
    ],
    ids=lambda value: value.kind if isinstance(value, GuidedDecoding) else "",
)
async def test_output_follows_a_grammar(vllm, tokenizer, guided, check):
    ids, last = await vllm.run(chat(tokenizer, "Answer."), guided=guided, stop=StopConditions(max_tokens=100))
    assert last.finish_reason == "stop"
    assert check(tokenizer.decode(ids)) not in (False, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling": SamplingOptions(temperature=9.0)},
        {"sampling": SamplingOptions(logprobs=10_000)},
        {"guided": GuidedDecoding("choice", "tea")},
        {"guided": GuidedDecoding("json", '{"type": 7}')},
        {"lora": "unknown"},
        {"dp_rank": 1},
        {"embed": True},
        {"kv_transfer_params": {"x": 1}},
        {"prior_output_tokens": 4},
        {"stop": StopConditions(max_tokens=0)},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_what_cannot_be_served_is_refused(vllm, fields):
    with pytest.raises(InvalidRequest):
        await vllm.run([5, 6, 7, 8][: 4 if "prior_output_tokens" not in fields else 3], **fields)
    assert len((await vllm.run([5, 6, 7], stop=StopConditions(max_tokens=2, ignore_eos=True)))[0]) == 2


async def test_a_request_id_is_used_once_at_a_time(vllm):
    request = vllm.request([5, 6, 7], stop=StopConditions(max_tokens=200, ignore_eos=True))
    first = vllm.stream(request)
    await anext(first)
    with pytest.raises(InvalidRequest, match="in use"):
        await anext(vllm.stream(request))
    await first.aclose()


async def test_a_killed_engine_ends_streams_and_tells_why_and_another_lives_on(running, vllm):
    """The last test: a second engine of this process, which is killed under a stream."""
    other = vllm
    async with running(VllmEngine(EngineOptions(argv=(*FLAGS, "--disable-log-stats")))) as vllm:
        assert other.config.capabilities.load
        assert not vllm.config.capabilities.load
        stream = vllm.stream(vllm.request([5, 6, 7], stop=StopConditions(max_tokens=900, ignore_eos=True)))
        await anext(stream)
        assert "VLLM_RPC_BASE_PATH" not in os.environ
        _core(before=set()).send_signal(signal.SIGKILL)
        with pytest.raises(EngineShutdown, match="engine process ended"):
            async for _ in stream:
                pass
        reason = await asyncio.wait_for(vllm.engine.failure(), 30)
        assert "engine process ended" in reason
        with pytest.raises(EngineShutdown, match="engine process ended"):
            await vllm.run([5, 6, 7])
    assert len((await other.run([5, 6, 7], stop=StopConditions(max_tokens=3, ignore_eos=True)))[0]) == 3


def _core(before: set[psutil.Process]) -> psutil.Process:
    """The engine process that was started last."""
    cores = [p for p in psutil.Process().children(recursive=True) if "EngineCore" in p.name() and p not in before]
    return max(cores, key=lambda process: process.create_time())
