from __future__ import annotations

import asyncio
import importlib.util
import json
import time

import numpy as np
import pytest

from dynamo.errors import ConfigError, Draining, EngineShutdown, InvalidRequest, Overloaded
from dynamo.protocols.engine import EngineOptions, KvEventSource, LoadSource, LoraHost
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from dynamo.protocols.llm import GuidedDecoding
from dynamo.reference import demo_model_directory
from dynamo.reference.engine import ReferenceEngine
from dynamo.runtime.context import Context

#: Slow enough that a test can act while a stream is open.
SLOW = ("--step-delay-ms", "20")


@pytest.fixture
async def start(model_directory):
    """Start engines on tiny models; they are cleaned up at the end."""
    engines = []

    async def started(case: str = "llama", *flags: str) -> ReferenceEngine:
        engine = ReferenceEngine(EngineOptions(model=str(model_directory(case)), argv=flags))
        engines.append(engine)
        await engine.start()
        return engine

    yield started
    for engine in engines:
        await engine.cleanup()


async def _collect(engine, request, context=None):
    return [output async for output in engine.generate(request, context or Context(request.request_id))]


def _tokens(outputs):
    return [token for output in outputs for token in output.token_ids]


async def _settled(engine, condition) -> None:
    """Wait until the engine's load meets a condition."""
    for _ in range(500):
        if condition(engine.load()[0]):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"load never settled: {engine.load()[0]}")


async def test_a_started_engine_describes_itself(model_directory):
    engine = ReferenceEngine(
        EngineOptions(model=str(model_directory("qwen2")), served_model_name="tiny", argv=("--num-blocks", "10"))
    )
    config = await engine.start()
    await engine.cleanup()
    assert (config.model, config.model_directory) == ("tiny", model_directory("qwen2"))
    assert (config.context_length_tokens, config.block_size_tokens, config.total_kv_blocks) == (128, 16, 10)
    assert config.capabilities.kv_events
    assert config.capabilities.resume
    assert isinstance(engine, KvEventSource)
    assert isinstance(engine, LoadSource)
    assert isinstance(engine, LoraHost)


async def test_without_a_model_the_demo_model_is_served(make_request):
    engine = ReferenceEngine(EngineOptions())
    config = await engine.start()
    outputs = await _collect(engine, make_request([5, 6, 7], max_tokens=4, ignore_eos=True))
    await engine.cleanup()
    assert config.model_directory == demo_model_directory()
    assert (config.model_directory / "tokenizer.json").is_file()
    assert len(_tokens(outputs)) == 4


async def test_a_missing_model_is_a_config_error(tmp_path):
    engine = ReferenceEngine(EngineOptions(model=str(tmp_path / "absent")))
    with pytest.raises(ConfigError, match="absent"):
        await engine.start()
    await engine.cleanup()


async def test_concurrent_streams_equal_the_golden_ones(start, golden, make_request):
    engine = await start()
    arrays = golden("llama")
    requests = [make_request(arrays[f"prompt_{i % 3}"], max_tokens=20, ignore_eos=True) for i in range(12)]
    results = await asyncio.gather(*(_collect(engine, request) for request in requests))
    for index, outputs in enumerate(results):
        assert _tokens(outputs) == arrays[f"tokens_{index % 3}"].tolist()
    await _settled(engine, lambda load: load.used_kv_blocks == 0)


async def test_the_event_loop_stays_responsive_while_the_engine_computes(start, make_request):
    engine = await start()
    streams = asyncio.gather(*(_collect(engine, make_request([5, 6, 7], ignore_eos=True)) for _ in range(8)))
    turns = 0
    while not streams.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 50  # an engine in the loop would allow one turn per step at most


async def test_cancelling_the_context_ends_the_stream(start, make_request):
    engine = await start("llama", *SLOW)
    request, context = make_request([5, 6, 7], ignore_eos=True), Context("c")
    outputs = []
    async for output in engine.generate(request, context):
        outputs.append(output)
        if len(outputs) == 2:
            context.cancel()
            await engine.abort(request.request_id)
            assert engine.load()[0].used_kv_blocks == 0
    assert outputs[-1].finish_reason == "cancelled"
    assert outputs[-1].usage.completion_tokens == len(_tokens(outputs))
    await engine.abort(request.request_id)
    await engine.abort("unknown")


async def test_a_request_that_is_cancelled_before_it_starts(start, make_request):
    engine = await start()
    context = Context("c")
    context.cancel()
    (output,) = await _collect(engine, make_request([5, 6], ignore_eos=True), context)
    assert (output.finish_reason, output.token_ids) == ("cancelled", [])


async def test_closing_the_iterator_early_frees_the_blocks_and_the_id(start, golden, make_request):
    engine = await start("llama", *SLOW)
    arrays = golden("llama")
    request = make_request(arrays["prompt_0"], max_tokens=10, ignore_eos=True)
    for _ in range(3):  # the same id at once again: what the aborted one still says must not reach the new stream
        stream = engine.generate(request, Context("c"))
        await anext(stream)
        await stream.aclose()
    assert _tokens(await _collect(engine, request)) == arrays["tokens_0"].tolist()[:10]
    await _settled(engine, lambda load: load.used_kv_blocks == 0)


async def test_requests_are_refused_at_the_first_step(start, make_request):
    engine = await start("llama", *SLOW)
    with pytest.raises(InvalidRequest) as caught:
        await _collect(engine, make_request([5] * 500))
    assert caught.value.reason == "context_length_exceeded"
    with pytest.raises(InvalidRequest, match="no LoRA named 'absent'"):
        await _collect(engine, make_request([5], lora="absent"))
    open_stream = engine.generate(make_request([5, 6], ignore_eos=True, request_id="twin"), Context("twin"))
    await anext(open_stream)
    with pytest.raises(InvalidRequest, match="'twin' is in use"):
        await _collect(engine, make_request([5, 6], request_id="twin"))
    await open_stream.aclose()


async def test_a_full_queue_is_overloaded(start, make_request):
    engine = await start("llama", "--max-num-seqs", "1", "--max-queued-requests", "1", *SLOW)
    streams = [engine.generate(make_request([5, 6], ignore_eos=True), Context(str(i))) for i in range(2)]
    first = asyncio.ensure_future(anext(streams[0]))
    second = asyncio.ensure_future(anext(streams[1]))
    await first
    with pytest.raises(Overloaded) as caught:
        await _collect(engine, make_request([5, 6]))
    assert caught.value.retry_after_seconds is not None
    await streams[0].aclose()
    assert (await second).token_ids
    await streams[1].aclose()


async def test_drain_finishes_what_runs_and_refuses_the_rest(start, make_request):
    engine = await start("llama", *SLOW)
    running = asyncio.ensure_future(_collect(engine, make_request([5, 6], max_tokens=10, ignore_eos=True)))
    await _settled(engine, lambda load: load.running_requests == 1)
    draining = asyncio.ensure_future(engine.drain(30))
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        await _collect(engine, make_request([5, 6]))
    await draining
    assert len(_tokens(await running)) == 10


async def test_drain_gives_up_at_its_deadline(start, make_request):
    engine = await start("llama", *SLOW)
    stream = engine.generate(make_request([5, 6], ignore_eos=True), Context("c"))
    await anext(stream)
    await engine.drain(0.01)
    assert (await anext(stream)).token_ids
    await stream.aclose()


async def test_cleanup_ends_open_streams(start, make_request):
    engine = await start("llama", *SLOW)
    stream = engine.generate(make_request([5, 6], ignore_eos=True), Context("c"))
    await anext(stream)
    await engine.cleanup()
    with pytest.raises(EngineShutdown, match="shut down"):
        async for _ in stream:
            pass
    await engine.cleanup()
    with pytest.raises(EngineShutdown):
        await _collect(engine, make_request([5, 6]))
    await engine.abort("anything")


async def test_the_death_of_the_engine_thread_reaches_every_stream(start, make_request):
    engine = await start("llama", *SLOW)
    streams = [engine.generate(make_request([5, 6], ignore_eos=True), Context(str(i))) for i in range(2)]
    for stream in streams:
        await anext(stream)

    def die(core):
        raise ZeroDivisionError("a bug in the engine")

    engine._started.thread.send(die)
    for stream in streams:
        with pytest.raises(EngineShutdown, match="ZeroDivisionError: a bug in the engine"):
            async for _ in stream:
                pass
    with pytest.raises(EngineShutdown, match="a bug in the engine"):
        await _collect(engine, make_request([5, 6]))


async def test_a_deadline_in_the_past_cancels(start, make_request):
    engine = await start()
    request = make_request([5, 6], ignore_eos=True, deadline_unix_seconds=time.time() - 1)
    (output,) = await _collect(engine, request)
    assert output.finish_reason == "cancelled"


async def test_events_mirror_the_cache_under_eviction_and_reset(start, make_request):
    engine = await start("llama", "--block-size", "4", "--num-blocks", "14")
    mirror = set()
    seen = {"removed": 0, "cleared": 0}

    async def follow():
        async for batch in engine.kv_events():
            for event in batch.events:
                if isinstance(event, BlockStored):
                    mirror.update(event.block_hashes)
                elif isinstance(event, BlockRemoved):
                    seen["removed"] += len(event.block_hashes)
                    mirror.difference_update(event.block_hashes)
                else:
                    assert isinstance(event, AllBlocksCleared)
                    seen["cleared"] += 1
                    mirror.clear()

    follower = asyncio.ensure_future(follow())
    for start_id in range(3, 15):
        prompt = [start_id] * 9 + list(range(3, 14))
        await _collect(engine, make_request(prompt, max_tokens=8, ignore_eos=True))
    assert seen["removed"] > 0
    names = await engine._started.thread.call(lambda core: set(core.pool.cached_names()))
    assert mirror == names
    assert await engine.reset_prefix_cache()
    await _settled(engine, lambda load: load.cached_kv_blocks == 0)
    assert seen["cleared"] == 1
    assert mirror == set()
    await engine.cleanup()
    await follower


async def test_exported_kv_continues_in_another_engine(start, golden, make_request):
    arrays = golden("qwen3")
    prompt = arrays["prompt_2"].tolist()
    first, second = await start("qwen3", "--block-size", "8"), await start("qwen3", "--block-size", "8")
    await _collect(first, make_request(prompt, max_tokens=1, ignore_eos=True, cache_salt="s"))
    assert await first.export_kv(prompt) == []
    frames = await first.export_kv(prompt, cache_salt="s")
    assert await second.import_kv(frames) == 6
    outputs = await _collect(second, make_request(prompt, max_tokens=20, ignore_eos=True, cache_salt="s"))
    assert _tokens(outputs) == arrays["tokens_2"].tolist()
    assert outputs[-1].usage.cached_tokens == 48


async def test_lora_is_loaded_used_and_unloaded(start, golden, lora_directory, make_request):
    engine = await start("llama", "--lora", f"early={lora_directory}")
    assert engine.loras() == ["early"]
    arrays = golden("lora")
    prompt = arrays["prompt_0"].tolist()
    await engine.load_lora("late", str(lora_directory))
    for name in ("early", "late"):
        outputs = await _collect(engine, make_request(prompt, max_tokens=20, ignore_eos=True, lora=name))
        assert _tokens(outputs) == arrays["tokens_0"].tolist()
        assert outputs[-1].usage.cached_tokens == 0  # nothing is shared between names
    with pytest.raises(InvalidRequest, match="loaded already"):
        await engine.load_lora("late", str(lora_directory))
    cached = engine.load()[0].cached_kv_blocks
    await engine.unload_lora("late")
    assert engine.loras() == ["early"]
    await _settled(engine, lambda load: load.cached_kv_blocks == cached // 2)
    with pytest.raises(InvalidRequest, match="no LoRA named 'late'"):
        await engine.unload_lora("late")


async def test_unloading_waits_for_the_requests_that_use_the_adapter(start, lora_directory, make_request):
    engine = await start("llama", "--lora", f"a={lora_directory}", *SLOW)
    stream = engine.generate(make_request([5, 6], ignore_eos=True, lora="a"), Context("c"))
    await anext(stream)
    unloading = asyncio.ensure_future(engine.unload_lora("a"))
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequest, match="no LoRA named 'a'"):
        await _collect(engine, make_request([5, 6], lora="a"))
    assert (await anext(stream)).token_ids
    assert not unloading.done()
    await stream.aclose()
    await asyncio.wait_for(unloading, 10)
    assert engine.loras() == []


@pytest.mark.parametrize("flag", ["nonsense", "a=", "=x"])
async def test_a_malformed_lora_flag(start, flag):
    with pytest.raises(ConfigError, match="NAME=PATH"):
        await start("llama", "--lora", flag)


async def test_a_lora_flag_that_does_not_fit_stops_the_start(start, lora_directory):
    with pytest.raises(ConfigError, match="does not fit"):
        await start("qwen3", "--lora", f"a={lora_directory}")


async def test_an_embedding_is_one_output(start, golden, make_request):
    engine = await start("mistral")
    arrays = golden("mistral")
    (output,) = await _collect(engine, make_request(arrays["prompt_1"], embed=True))
    np.testing.assert_allclose(np.frombuffer(output.embedding, "<f4"), arrays["mean_1"], atol=2e-5)
    assert output.finish_reason == "stop"


async def test_guided_decoding_is_announced_only_with_a_tokenizer(model_directory):
    engine = ReferenceEngine(EngineOptions(model=str(model_directory("llama"))))
    config = await engine.start()  # tiny models have no tokenizer.json
    await engine.cleanup()
    assert config.capabilities.guided == []


async def test_before_the_start_everything_says_so(make_request):
    engine = ReferenceEngine(EngineOptions())
    with pytest.raises(EngineShutdown, match="has not started"):
        await _collect(engine, make_request([5]))
    assert engine.loras() == []
    assert engine.load()[0].total_kv_blocks == 0
    await engine.abort("unknown")
    await engine.cleanup()


@pytest.mark.skipif(importlib.util.find_spec("llguidance") is not None, reason="the extra is installed")
async def test_without_the_extra_guided_requests_say_what_to_install(start, make_request):
    engine = await start()
    with pytest.raises(InvalidRequest, match="not available") as caught:
        await _collect(engine, make_request([5], guided=GuidedDecoding(kind="json_object")))
    assert "dynamo-core[guided]" in caught.value.hint


def test_the_demo_model_is_packaged():
    config = json.loads((demo_model_directory() / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
