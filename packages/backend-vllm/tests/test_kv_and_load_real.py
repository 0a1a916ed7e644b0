"""KV events, load and metrics of a vLLM engine that runs: nothing here is made up. `nox -s "engine(vllm)"`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Iterator

import pytest

from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from dynamo.reference import demo_model_directory
from dynamo.vllm.kv_events import VllmKvEvents
from dynamo.vllm.load import VllmLoad
from dynamo.worker.kv_publisher import KvEventPublisher

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),
]

BLOCK = 32
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_engine(load: VllmLoad, endpoint: str, replay_endpoint: str):
    from vllm.config import KVEventsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=str(demo_model_directory()),
        enforce_eager=True,
        dtype="float32",
        max_model_len=340,
        block_size=BLOCK,
        num_gpu_blocks_override=12,
        kv_cache_memory_bytes=64 << 20,
        kv_events_config=KVEventsConfig(
            enable_kv_cache_events=True,
            publisher="zmq",
            endpoint=endpoint,
            replay_endpoint=replay_endpoint,
            topic="kv",
        ),
    )
    engine = AsyncLLM.from_engine_args(
        arguments, usage_context=UsageContext.OPENAI_API_SERVER, stat_loggers=[load.stat_logger()]
    )
    try:
        yield engine
    finally:
        engine.shutdown()


def prompt(seed: int, tokens: int) -> list[int]:
    return [3 + (seed * 131 + position * 7) % 400 for position in range(tokens)]


async def generate(engine, ids: list[int], tokens: int = 2, **inputs: str):
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    request_id = f"{len(ids)}-{ids[0]}-{sorted(inputs)}"
    outputs = engine.generate(TokensPrompt(prompt_token_ids=ids, **inputs), sampling, request_id)
    return [output async for output in outputs][-1]


async def collect(events: VllmKvEvents, enough) -> list:
    seen = []
    while not enough(seen):
        batch = await asyncio.wait_for(events.__anext__(), 30)
        seen += batch.events
    return seen


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For an engine that is started without the adapter: vLLM leaves its sockets where it is told to have them."""
    with tempfile.TemporaryDirectory() as sockets:
        for name, value in {**ENVIRONMENT, "VLLM_RPC_BASE_PATH": sockets}.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.usefixtures("environment")
async def test_an_engine_that_runs():
    load = VllmLoad()
    endpoint, replay_endpoint = f"tcp://*:{free_port()}", f"tcp://*:{free_port()}"
    assert load.load() == []
    with running_engine(load, endpoint, replay_endpoint) as engine:
        await generate(engine, prompt(1, 100))
        # Nobody listened to that; the replay has it.
        events = VllmKvEvents(endpoint, replay_endpoint, topic="kv")
        (first,) = await collect(events, len)
        assert isinstance(first, BlockStored)
        assert first.token_ids == prompt(1, 100)[:96]
        assert (first.block_size, first.medium, len(first.block_hashes)) == (BLOCK, "device", 3)

        again = await generate(engine, prompt(1, 100))
        assert again.num_cached_tokens == 96
        (rank,) = load.load()
        assert (rank.prefix_cache_queried_tokens, rank.prefix_cache_hit_tokens) == (200, 96)
        assert (rank.total_kv_blocks, rank.running_requests, rank.waiting_requests) == (12, 0, 0)

        await generate(engine, prompt(1, 100), cache_salt="tenant")
        (salted,) = await collect(events, len)
        assert salted.cache_salt == "tenant"

        await generate(engine, prompt(2, 320))
        evicting = await collect(events, lambda seen: any(isinstance(event, BlockStored) for event in seen))
        assert isinstance(evicting[0], BlockRemoved)

        assert await engine.reset_prefix_cache()
        await generate(engine, prompt(3, 40))
        cleared = await collect(events, lambda seen: len(seen) > 1 and isinstance(seen[-1], BlockStored))
        assert AllBlocksCleared() in cleared

        # What a router is told is what the engine holds: one block of 40 tokens.
        publisher = KvEventPublisher(1, "demo", BLOCK, lambda _payload: None)
        late = VllmKvEvents(endpoint, replay_endpoint, topic="kv")
        while not any(block == cleared[-1].block_hashes[0] for _, block in publisher.mirror(0)._blocks):
            publisher.take(await asyncio.wait_for(late.__anext__(), 30))
        assert len(publisher.mirror(0)) == 1
        assert publisher.mirror(0).orphans == 0
        for source in (events, late):
            assert not source.dropped
            await source.close()

        families = {family.name: family for family in load.metrics()}
        hits = [sample.value for sample in families["vllm:prefix_cache_hits"].samples if sample.name.endswith("_total")]
        assert hits == [96]
        assert families["vllm:time_to_first_token_seconds"].type == "histogram"


@pytest.mark.usefixtures("environment")
async def test_the_load_while_requests_run():
    load = VllmLoad()
    with running_engine(load, f"tcp://*:{free_port()}", f"tcp://*:{free_port()}") as engine:
        requests = [asyncio.create_task(generate(engine, prompt(seed, 100), tokens=200)) for seed in range(3)]
        busiest = waiting = 0
        while not all(request.done() for request in requests):
            await asyncio.sleep(0.01)
            for rank in load.load():
                busiest = max(busiest, rank.used_kv_blocks)
                waiting = max(waiting, rank.waiting_requests)
        await asyncio.gather(*requests)
        (rank,) = load.load()
        # 300 tokens of each of three requests do not fit into 11 blocks of 32.
        assert busiest >= 9
        assert waiting or rank.preempted_requests
        assert (rank.running_requests, rank.used_kv_blocks) == (0, 0)
