"""LoRA adapters and data parallelism of a vLLM engine that runs, both in one engine. `nox -s "engine(vllm)"`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from dynamo.errors import InvalidRequest
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.hashing import seed_of, sequence_hashes
from dynamo.protocols.kv_events import HashesStored, KvEventBatch
from dynamo.protocols.llm import StopConditions
from dynamo.reference import demo_model_directory
from dynamo.reference.engine import ReferenceEngine
from dynamo.testing.lora_adapters import write_lora_adapter
from dynamo.vllm.engine import VllmEngine
from dynamo.worker.kv_publisher import KvEventPublisher

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("default"),
]

BLOCK = 32
RANKS = 2
FLAGS = (
    "--kv-cache-memory-bytes=16777216",
    "--max-model-len=512",
    f"--block-size={BLOCK}",
    f"--data-parallel-size={RANKS}",
    "--enable-lora",
    "--max-loras=2",
    "--max-cpu-loras=2",
    "--max-lora-rank=8",
)
EIGHT = StopConditions(max_tokens=8, ignore_eos=True)
PROMPT = [3 + (17 * position) % 900 for position in range(3 * BLOCK + 5)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm(running):
    async with running(VllmEngine(EngineOptions(argv=FLAGS))) as started:
        assert started.config.capabilities.lora
        assert started.config.dp_size == RANKS
        yield started


@pytest.fixture
def adapter(tmp_path):
    def write(name: str, **options) -> str:
        return str(write_lora_adapter(tmp_path / name, demo_model_directory(), **{"scale": 0.2, **options}))

    return write


async def test_adapters_answer_as_in_the_reference_engine_at_every_rank(running, vllm, adapter):
    path = adapter("tuned", seed=1)
    async with running(ReferenceEngine(EngineOptions())) as reference:
        await reference.engine.load_lora("tuned", path)
        expected, _ = await reference.run(PROMPT, lora="tuned", stop=EIGHT)
    base, _ = await vllm.run(PROMPT, dp_rank=0, stop=EIGHT)
    await vllm.engine.load_lora("tuned", path)
    try:
        assert list(vllm.engine.loras()) == ["tuned"]
        for rank in range(RANKS):
            tokens, last = await vllm.run(PROMPT, lora="tuned", dp_rank=rank, stop=EIGHT)
            assert tokens == expected != base
            assert last.usage.cached_tokens == 0  # neither the base model's nor the other rank's blocks
            _, again = await vllm.run(PROMPT, lora="tuned", dp_rank=rank, stop=EIGHT)
            assert again.usage.cached_tokens == 3 * BLOCK
    finally:
        await vllm.engine.unload_lora("tuned")
    with pytest.raises(InvalidRequest, match="no LoRA named 'tuned'"):
        await vllm.run(PROMPT, lora="tuned")


async def test_an_adapter_that_comes_back_trained_further_reuses_nothing(vllm, adapter):
    answers = []
    for seed in (2, 3):
        await vllm.engine.load_lora("again", adapter("again", seed=seed))
        tokens, last = await vllm.run(PROMPT, lora="again", dp_rank=0, stop=EIGHT)
        answers.append(tokens)
        assert last.usage.cached_tokens == 0
        await vllm.engine.unload_lora("again")
    assert answers[0] != answers[1]


async def test_wrong_adapters_are_refused_and_the_engine_lives(vllm, adapter):
    files = {name: Path(adapter(name)) for name in ("corrupt", "no-weights", "no-config", "misstated")}
    (files["corrupt"] / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
    (files["no-weights"] / "adapter_model.safetensors").unlink()
    (files["no-config"] / "adapter_config.json").write_text("{")
    settings = json.loads((files["misstated"] / "adapter_config.json").read_text())
    (files["misstated"] / "adapter_config.json").write_text(json.dumps({**settings, "r": 8}))
    files["high-rank"] = Path(adapter("high-rank", rank=16))
    for name, path in files.items():
        with pytest.raises(InvalidRequest, match=name):
            await vllm.engine.load_lora(name, str(path))
    good = adapter("good")
    await vllm.engine.load_lora("good", good)
    with pytest.raises(InvalidRequest, match="'good' is loaded already"):
        await vllm.engine.load_lora("good", good)
    await vllm.engine.load_lora("second", good)
    with pytest.raises(InvalidRequest, match="keeps 2 LoRA adapters"):
        await vllm.engine.load_lora("third", good)
    tokens, _ = await vllm.run(PROMPT, lora="good", stop=EIGHT)
    assert len(tokens) == 8
    for name in ("good", "second"):
        await vllm.engine.unload_lora(name)
    with pytest.raises(InvalidRequest, match="no LoRA named 'good'"):
        await vllm.engine.unload_lora("good")


async def test_events_of_a_rank_carry_the_adapter_and_become_our_hashes(vllm, adapter):
    """What a frontend computes of the prompt and the adapter's name is what the worker publishes, for the right rank."""
    published: list[KvEventBatch] = []
    decode = msgspec.msgpack.Decoder(KvEventBatch).decode
    publisher = KvEventPublisher(1, "dynamo-demo", BLOCK, lambda payload: published.append(decode(payload)))
    following = asyncio.create_task(publisher.follow(vllm.engine.kv_events()))
    await vllm.engine.load_lora("heard", adapter("heard"))
    prompt = [5 + (23 * position) % 900 for position in range(2 * BLOCK + 3)]
    try:
        await vllm.run(prompt, lora="heard", dp_rank=1, stop=EIGHT)
        wanted = set(sequence_hashes(np.asarray(prompt, np.uint32), BLOCK, seed_of("heard")).tolist())

        async def heard():
            while not wanted <= _stored(published, 1):
                await asyncio.sleep(0.02)

        await asyncio.wait_for(heard(), 30)
        assert not wanted & _stored(published, 0)
    finally:
        await vllm.engine.unload_lora("heard")
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


def _stored(batches: Sequence[KvEventBatch], rank: int) -> set[int]:
    runs = [e.hashes for b in batches if b.dp_rank == rank for e in b.events if isinstance(e, HashesStored)]
    return {value for run in runs for value in np.frombuffer(run, "<u8").tolist()}
