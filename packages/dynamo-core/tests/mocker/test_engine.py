"""What only the mocker does; that it keeps the engine contract is tested by the conformance suite."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from dynamo.errors import ConfigError, EngineError, EngineShutdown, InvalidRequest, KvTransferError, Overloaded
from dynamo.mocker.core import BlocksRemoved
from dynamo.mocker.engine import MockerEngine
from dynamo.mocker.event_queue import EVENT_BACKLOG_LIMIT
from dynamo.mocker.perf_model import PerfModel
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.kv_events import BlockRemoved, BlockStored
from dynamo.protocols.llm import DisaggregationMode, PreprocessedRequest, StopConditions, pack_token_ids
from dynamo.runtime.context import Context
from dynamo.testing.engine_conformance import run_engine_conformance

PREFILL, DECODE = DisaggregationMode.PREFILL, DisaggregationMode.DECODE


@pytest.fixture
async def start():
    engines = []

    async def make(*flags: str, mode: DisaggregationMode = DisaggregationMode.AGGREGATED, **options) -> MockerEngine:
        engine = MockerEngine(EngineOptions(argv=("--speedup-ratio", "0", *flags), mode=mode, **options))
        engines.append(engine)
        await engine.start()
        return engine

    yield make
    for engine in engines:
        await engine.cleanup()


def _request(prompt: list[int], *, request_id: str = "r", max_tokens: int | None = 4, **fields) -> PreprocessedRequest:
    return PreprocessedRequest(
        request_id, "mocker", pack_token_ids(prompt), stop=StopConditions(max_tokens=max_tokens), **fields
    )


async def _serve(engine: MockerEngine, request: PreprocessedRequest) -> list:
    return [output async for output in engine.generate(request, Context(request.request_id))]


def _ids(outputs: list) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize(
    "flags",
    [
        ("--speedup-ratio", "0"),
        ("--speedup-ratio", "500", "--dp-size", "2"),
        ("--speedup-ratio", "0", "--output", "echo", "--max-num-batched-tokens", "48"),
        ("--speedup-ratio", "0", "--no-enable-prefix-caching"),
    ],
    ids=" ".join,
)
def test_it_keeps_the_engine_contract(flags: tuple[str, ...]) -> None:
    small = ("--num-gpu-blocks-override", "192", "--block-size", "16", "--max-model-len", "512")
    report = run_engine_conformance(MockerEngine, EngineOptions(argv=(*flags, *small)))
    report.raise_for_failures()
    assert {"cancel.storm", "resume.usage", "concurrency"} <= set(report.named("ok"))
    if "--no-enable-prefix-caching" not in flags:
        assert {"events.eviction", "events.agree", "events.load"} <= set(report.named("ok"))


def _engine_seconds(engine: MockerEngine) -> float:
    """Engine time that has passed; with --speedup-ratio 0 nothing but steps and transfers take any."""
    return engine._started.ranks[0]._pace.now()


async def test_engine_time_passes_as_the_perf_model_says(tmp_path: Path, start) -> None:
    perf = tmp_path / "perf.json"
    perf.write_text(json.dumps({"prefill": [[1, 3000], [2, 3000]], "decode": [[1, 1, 1000], [2, 1, 1000]]}))
    engine = await start("--perf-model", str(perf), "--decode-speedup-ratio", "2")
    assert len(_ids(await _serve(engine, _request([1, 2, 3], max_tokens=5)))) == 5
    assert _engine_seconds(engine) == pytest.approx(3.0 + 4 * 0.5)


async def test_a_prefill_worker_gives_one_token_and_the_way_to_its_kv(start) -> None:
    engine = await start(mode=PREFILL)
    [only] = await _serve(engine, _request([1, 2, 3], max_tokens=50))
    assert len(only.token_ids) == 1
    assert only.finish_reason == "length"
    assert only.kv_transfer_params["prompt_tokens"] == 3


async def test_prefill_and_decode_together_answer_as_one_worker_would(start) -> None:
    prompt = list(range(300, 460))
    whole = _ids(await _serve(await start(), _request(prompt, max_tokens=9)))
    prefill, decode = await start(mode=PREFILL), await start("--block-size", "16", mode=DECODE)
    [handed] = await _serve(prefill, _request(prompt, max_tokens=9))
    assert handed.token_ids == whole[:1]
    outputs = await _serve(decode, _request(prompt, max_tokens=9, kv_transfer_params=handed.kv_transfer_params))
    assert _ids(outputs) == whole
    assert outputs[-1].kv_transfer_params is None
    again = await _serve(decode, _request(prompt, request_id="again"))
    assert again[-1].usage.cached_tokens == 144  # what was transferred is cached


async def test_a_transfer_takes_as_long_as_its_bytes(start) -> None:
    engine = await start("--kv-bytes-per-token", "1e9", "--kv-transfer-bandwidth", "0.5", mode=DECODE)
    params = {"connector": "mocker", "prompt_tokens": 101}
    await _serve(engine, _request([5] * 101, max_tokens=1, kv_transfer_params=params))
    assert _engine_seconds(engine) == pytest.approx(100 * 2.0, rel=1e-3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"connector": "NixlConnector", "prompt_tokens": 3}, "connector 'NixlConnector'"),
        ({"connector": "mocker", "prompt_tokens": 4}, "of 4 prompt tokens; this prompt has 3"),
        ({}, "connector None"),
    ],
)
async def test_foreign_kv_is_refused(start, params: dict, message: str) -> None:
    engine = await start(mode=DECODE)
    with pytest.raises(KvTransferError, match=message):
        await _serve(engine, _request([1, 2, 3], kv_transfer_params=params))


async def test_a_decode_worker_without_kv_computes_the_prompt(start) -> None:
    engine = await start(mode=DECODE)
    assert len(_ids(await _serve(engine, _request([1, 2, 3])))) == 4


async def test_ranks_have_caches_of_their_own(start) -> None:
    engine = await start("--data-parallel-size", "2", "--block-size", "4")
    prompt = list(range(300, 320))
    cached = [(await _serve(engine, _request(prompt, dp_rank=rank)))[-1].usage.cached_tokens for rank in (0, 1, 0, 1)]
    assert cached == [0, 0, 16, 16]
    with pytest.raises(InvalidRequest, match="no data-parallel rank 2"):
        await _serve(engine, _request(prompt, dp_rank=2))
    assert [load.dp_rank for load in engine.load()] == [0, 1]


async def test_requests_without_a_rank_go_to_the_least_busy_one(start) -> None:
    engine = await start("--data-parallel-size", "2")
    streams = [engine.generate(_request([1, 2], request_id=str(n), max_tokens=50), Context(str(n))) for n in range(4)]
    for stream in streams:
        await stream.__anext__()
    assert [load.running_requests for load in engine.load()] == [2, 2]
    for stream in streams:
        await stream.aclose()


async def test_events_carry_the_ids_of_prompt_and_output_and_evictions(start) -> None:
    engine = await start("--block-size", "4", "--num-gpu-blocks-override", "4")
    events = engine.kv_events()
    ids = _ids(await _serve(engine, _request([1, 2, 3], max_tokens=6)))
    first = await asyncio.wait_for(events.__anext__(), 10)
    assert first.events[0].token_ids == [1, 2, 3, ids[0]]
    second = (await asyncio.wait_for(events.__anext__(), 10)).events[0]
    assert (second.parent_hash, second.token_ids) == (first.events[0].block_hashes[0], ids[1:5])
    await _serve(engine, _request(list(range(50, 62)), request_id="big", max_tokens=1))
    third = (await asyncio.wait_for(events.__anext__(), 10)).events
    assert [type(event) for event in third] == [BlockRemoved, BlockStored]
    await events.aclose()


async def test_a_full_queue_sends_requests_elsewhere(start) -> None:
    engine = await start("--max-num-seqs", "1", "--max-queued-requests", "1")
    streams = [engine.generate(_request([1], request_id=str(n), max_tokens=99), Context(str(n))) for n in range(3)]
    for stream in streams[:1]:
        await stream.__anext__()
    queued = asyncio.ensure_future(streams[1].__anext__())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await streams[2].__anext__()
    assert caught.value.retry_after_seconds == 1.0
    await engine.abort("1")
    assert (await asyncio.wait_for(queued, 10)).finish_reason == "cancelled"
    await streams[0].aclose()


async def test_a_model_directory_says_what_it_can(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": {"vocab_size": 40, "max_position_embeddings": 99}})
    )
    engine = MockerEngine(EngineOptions(model=str(tmp_path), argv=("--speedup-ratio", "0")))
    config = await engine.start()
    assert (config.model, config.context_length_tokens) == (tmp_path.name, 99)
    assert max(_ids(await _serve(engine, _request([1], max_tokens=50)))) < 40
    await engine.cleanup()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--max-model-len", "500"), 500),
        (("--max-model-len", "500", "--num-gpu-blocks-override", "7", "--block-size", "16"), 112),
        ((), 4096),
    ],
)
async def test_the_context_is_what_the_blocks_hold(start, flags: tuple[str, ...], expected: int) -> None:
    engine = await start(*flags)
    with pytest.raises(InvalidRequest) as caught:
        await _serve(engine, _request([1] * expected))
    assert caught.value.reason == "context_length_exceeded"
    assert len(_ids(await _serve(engine, _request([1] * (expected - 1), max_tokens=9)))) == 1


async def test_wrong_directories_and_settings_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    for options, message in (
        (EngineOptions(model=str(tmp_path / "nowhere")), "does not exist"),
        (EngineOptions(model=str(tmp_path)), "is not a JSON object"),
        (EngineOptions(argv=("--no-enable-chunked-prefill", "--max-num-batched-tokens", "64")), "chunked prefill"),
        (EngineOptions(argv=("--perf-model", str(tmp_path / "nowhere"))), "performance data"),
    ):
        with pytest.raises(ConfigError, match=message):
            await MockerEngine(options).start()


async def test_without_room_for_events_nothing_new_is_cached(start) -> None:
    engine = await start("--block-size", "4")
    events = engine.kv_events()
    prompt = list(range(300, 320))
    first = asyncio.ensure_future(events.__anext__())
    await _serve(engine, _request(prompt, max_tokens=1))
    assert len((await asyncio.wait_for(first, 10)).events[0].block_hashes) == 5
    for number in range(EVENT_BACKLOG_LIMIT):
        engine._events.put([BlocksRemoved([number])], 0)
    await _serve(engine, _request([1, 2], max_tokens=1))  # the end of a step is when the engine looks
    before = engine.load()[0].cached_kv_blocks
    await _serve(engine, _request(list(range(400, 420)), max_tokens=1))
    assert engine.load()[0].cached_kv_blocks == before
    for _ in range(EVENT_BACKLOG_LIMIT):
        await events.__anext__()
    await _serve(engine, _request([1, 2], max_tokens=1))
    await _serve(engine, _request(list(range(400, 420)), max_tokens=1))
    assert engine.load()[0].cached_kv_blocks == before + 5
    await events.aclose()


async def test_events_have_one_consumer(start) -> None:
    engine = await start()
    first, second = engine.kv_events(), engine.kv_events()
    waiting = asyncio.ensure_future(first.__anext__())
    await asyncio.sleep(0)
    with pytest.raises(EngineError, match="have a consumer"):
        await second.__anext__()
    waiting.cancel()
    await asyncio.wait([waiting])
    await first.aclose()


class _BrokenModel(PerfModel):
    def step_seconds(self, *args) -> float:
        raise ZeroDivisionError("no such speed")


async def test_a_rank_that_dies_ends_its_streams_and_the_engine(start, caplog) -> None:
    engine = await start()
    engine._started.ranks[0].core._perf_model = _BrokenModel()
    for _ in range(2):
        with pytest.raises(EngineShutdown):
            await asyncio.wait_for(_serve(engine, _request([1, 2])), 10)
    assert "no such speed" in caplog.text
