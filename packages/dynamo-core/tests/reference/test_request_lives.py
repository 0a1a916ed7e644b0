"""Random request lives: whatever is submitted, cancelled, evicted, preempted or finished, nothing is lost or leaked.

The model behind the seam is a checker: it stores every token and position in the KV cache, reads each sequence back
through its block table, and fails when a block does not hold what the sequence thinks. The next token is a function of
all tokens read, so a stream's output proves its whole KV content.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from dynamo.protocols.llm import PreprocessedRequest, SamplingOptions, StopConditions, pack_token_ids
from dynamo.reference.core import EngineCore
from dynamo.reference.kv_cache import KvCache
from dynamo.reference.model_config import ModelConfig, RopeScaling

VOCAB = 23
BLOCK = 3
CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=VOCAB,
    hidden_size=VOCAB,
    intermediate_size=1,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    rms_norm_eps=1e-6,
    max_position_embeddings=64,
    rope=RopeScaling(),
    windows=(None,),
)


def next_token(tokens: np.ndarray) -> int:
    """A number that depends on every token and its position."""
    weights = np.arange(1, len(tokens) + 1, dtype=np.int64)
    return int((tokens.astype(np.int64) * weights * weights + weights).sum() % VOCAB)


class CheckingModel:
    """Implements ForwardModel."""

    def forward(self, batch, cache):
        held = np.stack([batch.token_ids, batch.positions], axis=1).astype(np.float32)[:, None]
        keys, _ = cache.write(0, batch.slots, held, held)
        hidden = np.zeros((len(batch.token_ids), VOCAB), np.float32)
        for group in batch.decodes:
            for row, table, length in zip(group.rows, group.tables, group.lengths, strict=True):
                hidden[row, self._read(keys, table, length)] = 1.0
        for span in batch.prefills:
            hidden[span.stop - 1, self._read(keys, span.table, span.length)] = 1.0
        return hidden[batch.output_rows]

    def logits(self, hidden):
        return hidden

    @staticmethod
    def _read(keys, table, length) -> int:
        tokens, positions = keys[table].reshape(-1, 2)[:length].T
        assert positions.tolist() == list(range(length)), "a block table leads to another sequence's tokens"
        return next_token(tokens)


class Mirror:
    """What a consumer of the events believes the cache to hold."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, tuple[bytes | None, tuple[int, ...]]] = {}

    def apply(self, event) -> None:
        if isinstance(event, AllBlocksCleared):
            self.blocks.clear()
        elif isinstance(event, BlockRemoved):
            for name in event.block_hashes:
                del self.blocks[name]  # removed once, and only what was stored
        else:
            assert isinstance(event, BlockStored)
            assert len(event.token_ids) == len(event.block_hashes) * BLOCK
            parent = event.parent_hash
            for index, name in enumerate(event.block_hashes):
                assert name not in self.blocks
                self.blocks[name] = (parent, tuple(event.token_ids[index * BLOCK : (index + 1) * BLOCK]))
                parent = name

    def check(self, core: EngineCore) -> None:
        assert self.blocks.keys() == core.pool.cached_names()
        assert all(parent is None or parent in self.blocks for parent, _ in self.blocks.values()), "an orphan"


class World:
    """One engine and everything that was ever asked of it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.num_blocks = self.random.choice([9, 12, 20])
        self.core = EngineCore(
            CheckingModel(),
            KvCache(CONFIG, self.num_blocks, BLOCK),
            max_model_len=self.num_blocks * BLOCK,
            max_num_seqs=self.random.choice([2, 5, 8]),
            max_num_batched_tokens=self.random.choice([8, 11, 32]),
            seed=seed,
        )
        self.mirror = Mirror()
        self.prompts: dict[int, list[int]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.finished: dict[int, object] = {}
        self.limits: dict[int, int] = {}

    def submit(self) -> None:
        key = len(self.prompts)
        shared = [1 + i % 7 for i in range(self.random.choice([0, 4, 9, 13]))]
        prompt = shared + [self.random.randrange(VOCAB) for _ in range(self.random.randint(1, 8))]
        self.limits[key] = self.random.randint(1, self.num_blocks * BLOCK - len(prompt))
        if self.random.random() < 0.7:
            self.limits[key] = min(self.limits[key], 6)
        self.prompts[key] = prompt
        self.outputs[key] = []
        request = PreprocessedRequest(
            request_id=str(key),
            model="checker",
            token_ids=pack_token_ids(prompt),
            sampling=SamplingOptions(temperature=0.0),
            stop=StopConditions(max_tokens=self.limits[key]),
            priority=self.random.choice([0, 0, 1]),
            cache_salt=self.random.choice([None, None, "salt"]),
        )
        self.core.add(key, request)

    def turn(self) -> None:
        """A few submissions and cancellations, then a step."""
        draw = self.random.random()
        if draw < 0.1 and self.prompts:
            self.core.abort(self.random.choice(list(self.prompts)))
        elif draw < 0.12:
            self.core.pool.clear()
        self.core.step(0.0)
        self.collect()

    def collect(self) -> None:
        result = self.core.take_result()
        for event in result.events:
            self.mirror.apply(event)
        self.mirror.check(self.core)
        for key, item in result.items:
            assert key not in self.finished, "an output after the last one"
            self.outputs[key].extend(item.token_ids)
            if item.finish_reason is not None:
                assert item.usage.completion_tokens == len(self.outputs[key])
                self.finished[key] = item.finish_reason
        load = result.load
        assert load.used_kv_blocks + self.core.pool.available == self.num_blocks

    def check_end(self) -> None:
        assert self.finished.keys() == self.prompts.keys(), "a stream that never ended"
        for key, reason in self.finished.items():
            tokens = np.array(self.prompts[key] + self.outputs[key])
            for position in range(len(self.prompts[key]), len(tokens)):
                assert tokens[position] == next_token(tokens[:position])
            if reason == "length":
                assert len(self.outputs[key]) == self.limits[key]
            else:
                assert reason == "cancelled"
        assert self.core.pool.used == 0
        assert self.core.pool.available == self.num_blocks
        assert self.core.load().waiting_requests == self.core.load().running_requests == 0


def _live(lives: int, seed: int) -> World:
    world = World(seed)
    while len(world.prompts) < lives:
        for _ in range(world.random.choice([0, 0, 1, 1, 2, 6])):
            world.submit()
        world.turn()
    for _ in range(lives * 1000):
        if not world.core.has_work:
            break
        world.turn()
    world.collect()
    world.check_end()
    return world


@pytest.mark.parametrize("seed", range(10))
def test_request_lives(seed):
    world = _live(100, seed)
    assert world.mirror.blocks


def test_the_lives_meet_preemption_eviction_and_cancellation():
    worlds = [_live(100, seed) for seed in range(100, 104)]
    assert sum(world.core.load().preempted_requests for world in worlds) > 0
    assert {"length", "cancelled"} == {reason for world in worlds for reason in world.finished.values()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1050))
def test_ten_thousand_request_lives(seed):
    _live(200, seed)
