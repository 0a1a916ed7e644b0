"""What only the echo engine does; that it keeps the engine contract is tested by the conformance suite."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynamo.echo.engine import EchoEngine
from dynamo.errors import ConfigError, EngineError, InvalidRequest, Overloaded
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.llm import (
    DisaggregationMode,
    GuidedDecoding,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    pack_token_ids,
)
from dynamo.runtime.context import Context


def _request(prompt: list[int], *, request_id: str = "r", **fields) -> PreprocessedRequest:
    return PreprocessedRequest(request_id, "echo", pack_token_ids(prompt), **fields)


async def _engine(*flags: str, **options) -> EchoEngine:
    engine = EchoEngine(EngineOptions(argv=flags, **options))
    await engine.start()
    return engine


async def _serve(engine: EchoEngine, request: PreprocessedRequest) -> list:
    return [output async for output in engine.generate(request, Context(request.request_id))]


async def test_the_prompt_comes_back_and_ends_by_itself() -> None:
    outputs = await _serve(await _engine(), _request([7, 8, 9]))
    assert [output.token_ids for output in outputs] == [[7], [8], [9], []]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", None)


async def test_ignore_eos_goes_round() -> None:
    request = _request([7, 8], stop=StopConditions(max_tokens=5, ignore_eos=True))
    outputs = await _serve(await _engine(), request)
    assert [token for output in outputs for token in output.token_ids] == [7, 8, 7, 8, 7]
    assert outputs[-1].finish_reason == "length"


async def test_a_script_answers_with_its_finish_reason(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(json.dumps({"token_ids": [3, 4], "finish_reason": "length", "delay_ms": 1}))
    outputs = await _serve(await _engine("--script", str(script)), _request([7]))
    assert [token for output in outputs for token in output.token_ids] == [3, 4]
    assert outputs[-1].finish_reason == "length"


async def test_an_empty_scripted_reply_ends_at_once(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(json.dumps({"token_ids": []}))
    [only] = await _serve(await _engine("--script", str(script)), _request([7], stop=StopConditions(ignore_eos=True)))
    assert (only.finish_reason, only.usage.completion_tokens) == ("stop", 0)


async def test_fail_after_raises_behind_the_nth_token() -> None:
    engine = await _engine("--fail-after", "2")
    outputs = engine.generate(_request([1, 2, 3, 4]), Context("r"))
    assert [(await outputs.__anext__()).token_ids for _ in range(2)] == [[1], [2]]
    with pytest.raises(EngineError, match="fails after 2 tokens"):
        await outputs.__anext__()
    assert engine.load()[0].used_kv_blocks == 0


def test_die_after_ends_the_process_without_cleanup() -> None:
    program = """
import asyncio
from dynamo.echo.engine import EchoEngine
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.llm import PreprocessedRequest, pack_token_ids
from dynamo.runtime.context import Context

async def main():
    engine = EchoEngine(EngineOptions(argv=("--die-after", "3")))
    await engine.start()
    for name in ("a", "b"):
        request = PreprocessedRequest(name, "echo", pack_token_ids([1, 2]))
        async for output in engine.generate(request, Context(name)):
            print(name, output.token_ids, flush=True)

try:
    asyncio.run(main())
finally:
    print("cleaned up", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["a [1]", "a [2]", "a []", "b [1]"]
    assert done.stderr == ""


async def test_an_abort_ends_a_pause() -> None:
    engine = await _engine("--tokens-per-second", "0.001", "--delay-ms", "1")
    outputs = engine.generate(_request([1, 2, 3]), Context("r"))
    assert (await outputs.__anext__()).token_ids == [1]
    waiting = asyncio.ensure_future(outputs.__anext__())
    await asyncio.sleep(0)
    await engine.abort("r")
    assert (await asyncio.wait_for(waiting, 10)).finish_reason == "cancelled"


async def test_an_id_that_is_running_is_refused() -> None:
    engine = await _engine()
    first = engine.generate(_request([1, 2]), Context("r"))
    await first.__anext__()
    with pytest.raises(InvalidRequest, match="'r' is already running"):
        await _serve(engine, _request([1, 2]))
    await first.aclose()
    assert len(await _serve(engine, _request([1, 2]))) == 3


async def test_a_full_pool_sends_requests_elsewhere() -> None:
    engine = await _engine("--num-blocks", "1", "--block-size", "4")
    with pytest.raises(Overloaded) as caught:
        await _serve(engine, _request([1, 2, 3, 4, 5]))
    assert caught.value.retry_after_seconds == 1.0


@pytest.mark.parametrize(
    "fields", [{"lora": "a"}, {"guided": GuidedDecoding("json_object")}, {"prior_output_tokens": 2}], ids=str
)
async def test_what_it_cannot_do_is_refused(fields: dict) -> None:
    with pytest.raises(InvalidRequest):
        await _serve(await _engine(), _request([1, 2], **fields))


async def test_logprobs_are_certain_and_the_likeliest_is_first() -> None:
    outputs = await _serve(await _engine(), _request([1], sampling=SamplingOptions(logprobs=3, prompt_logprobs=0)))
    [entry] = outputs[0].logprobs
    assert (entry.token_id, entry.logprob) == (1, 0.0)
    assert [token for token, _ in entry.top] == [1, 0, 2]
    assert outputs[0].prompt_logprobs == [None]


async def test_an_embedding_is_a_unit_vector_of_the_ids() -> None:
    engine = await _engine()
    [first], [second], [other] = [await _serve(engine, _request(p, embed=True)) for p in ([1, 2], [1, 2], [2, 3])]
    vector = np.frombuffer(first.embedding, dtype="<f4")
    assert vector.shape == (64,)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    assert first.embedding == second.embedding != other.embedding


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tokens-per-secnd", "5"), "--tokens-per-second"),
        (("--block-size", "0"), "--block-size"),
        (("--num-blocks", "many"), "many"),
        (("--delay-ms", "-1"), "--delay-ms"),
        (("stray",), "stray"),
    ],
)
def test_a_wrong_flag_is_named(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EchoEngine(EngineOptions(argv=flags))


def test_it_has_no_halves() -> None:
    with pytest.raises(ConfigError, match="cannot be a prefill worker"):
        EchoEngine(EngineOptions(mode=DisaggregationMode.PREFILL))


async def test_names_come_from_the_user_or_the_directory(tmp_path: Path) -> None:
    assert (await EchoEngine(EngineOptions()).start()).model == "echo"
    assert (await EchoEngine(EngineOptions(model=str(tmp_path))).start()).model == tmp_path.name
    assert (await EchoEngine(EngineOptions(served_model_name="mine")).start()).model == "mine"


async def test_a_missing_model_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist") as caught:
        await _engine(model=str(tmp_path / "nowhere"))
    assert caught.value.param == "model"


def test_the_packaged_tokenizer_is_its_text_side() -> None:
    from dynamo.reference import demo_model_directory

    config = asyncio.run(EchoEngine(EngineOptions()).start())
    assert config.model_directory == demo_model_directory()
