"""The engine against transformers in float32 (golden outputs by tools/reference_golden/make_golden.py)."""

from __future__ import annotations

import numpy as np
import pytest

from dynamo.protocols.llm import LLMEngineOutput
from dynamo.reference.batch import build_batch
from dynamo.reference.lora import load_lora_adapter
from dynamo.reference.sampling import Sampler
from dynamo.reference.scheduler import Chunk
from dynamo.reference.sequence import Sequence

CASES = [
    "llama",
    "llama-bias",
    "llama-dynamic",
    "llama-linear",
    "llama-llama3",
    "llama-yarn",
    "lora",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
]
#: Largest difference of a logit from transformers'. Measured: 1.2e-5 at most, with logits up to 6.
LOGIT_TOLERANCE = 5e-5

#: How a run is arranged must not change what it says.
ARRANGEMENTS = {
    "plain": ("--max-num-seqs", "1"),
    "batched": (),
    "chunked": ("--max-num-batched-tokens", "7", "--max-num-seqs", "3"),
    "small-blocks": ("--block-size", "3"),
    "preempted": ("--block-size", "4", "--num-blocks", "26", "--max-model-len", "72"),
}


@pytest.fixture
def start(load_case, lora_directory, golden):
    """(loaded model, adapter or None, prompts, golden arrays) of a case."""

    def loaded(case: str, *flags: str):
        arrays = golden(case)
        base = load_case("llama" if case == "lora" else case, *flags)
        adapter = load_lora_adapter("lora", lora_directory, base.config, max_rank=8) if case == "lora" else None
        prompts = [arrays[f"prompt_{index}"].tolist() for index in range(3)]
        return base, adapter, prompts, arrays

    return loaded


def _all_logits(loaded, adapter, request, split: int) -> np.ndarray:
    """Logits of every prompt position, computed in two chunks."""
    core = loaded.core
    length = len(request.prompt())
    sequence = Sequence(
        "only",
        request,
        arrival=0,
        max_length=length + 1,
        block_size=core.cache.block_size,
        sampler=Sampler(request.sampling, seed=0, prompt_ids=np.empty(0, np.int32)),
        adapter=adapter,
    )
    sequence.append_blocks(core.pool.allocate(-(-length // core.cache.block_size)))
    logits = []
    for count in (split, length - split):
        batch = build_batch([Chunk(sequence, count)], core.cache.block_size)
        logits.append(core._model.logits(core._model.forward(batch, core.cache)))
        sequence.computed += count
    return np.concatenate(logits)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case, start, make_request, capsys):
    loaded, adapter, prompts, arrays = start(case)
    logits = _all_logits(loaded, adapter, make_request(prompts[0], prompt_logprobs=0), split=20)
    difference = float(np.abs(logits - arrays["logits"]).max())
    print(f"{case}: max abs difference of logits {difference:.2e}, largest logit {np.abs(logits).max():.1f}")
    assert difference < LOGIT_TOLERANCE


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_greedy_tokens_equal_transformers(case, arrangement, start, make_request, run_core):
    loaded, adapter, prompts, arrays = start(case, *ARRANGEMENTS[arrangement])
    for index, prompt in enumerate(prompts):
        loaded.core.add(index, make_request(prompt, max_tokens=20, ignore_eos=True), adapter=adapter)
    streams = run_core(loaded.core)
    for index in range(3):
        tokens = [token for output in streams[index] for token in output.token_ids]
        assert tokens == arrays[f"tokens_{index}"].tolist()
    preemptions = loaded.core.load().preempted_requests
    assert preemptions > 0 if arrangement == "preempted" else preemptions == 0


@pytest.mark.parametrize("case", CASES)
def test_prefix_hit_changes_nothing(case, start, make_request, run_core):
    loaded, adapter, prompts, arrays = start(case, "--block-size", "4")
    for attempt in ("cold", "beside"):
        loaded.core.add(attempt, make_request(prompts[2], max_tokens=20, ignore_eos=True), adapter=adapter)
    first = run_core(loaded.core)
    loaded.core.add("warm", make_request(prompts[2], max_tokens=20, ignore_eos=True), adapter=adapter)
    warm = run_core(loaded.core)["warm"]
    expected = arrays["tokens_2"].tolist()
    for stream in (first["cold"], first["beside"], warm):
        assert [token for output in stream for token in output.token_ids] == expected
    assert warm[-1].usage.cached_tokens == 48  # 50 tokens are 12 full blocks of 4


@pytest.mark.parametrize("case", CASES)
def test_mean_of_last_hidden_states_equals_transformers(case, start, make_request, run_core):
    loaded, adapter, prompts, arrays = start(case, "--max-num-batched-tokens", "16", "--max-num-seqs", "4")
    for index, prompt in enumerate(prompts):
        loaded.core.add(index, make_request(prompt, embed=True), adapter=adapter)
    streams = run_core(loaded.core)
    for index in range(3):
        (output,) = streams[index]
        assert isinstance(output, LLMEngineOutput)
        vector = np.frombuffer(output.embedding, "<f4")
        np.testing.assert_allclose(vector, arrays[f"mean_{index}"], atol=2e-5)
        assert output.usage.completion_tokens == 0


def test_lora_and_base_share_a_batch(start, golden, make_request, run_core):
    loaded, adapter, prompts, arrays = start("lora")
    base = golden("llama")
    base_prompt = base["prompt_0"].tolist()
    loaded.core.add("lora", make_request(prompts[0], max_tokens=20, ignore_eos=True), adapter=adapter)
    loaded.core.add("base", make_request(base_prompt, max_tokens=20, ignore_eos=True))
    streams = run_core(loaded.core)
    tokens = {name: [token for output in stream for token in output.token_ids] for name, stream in streams.items()}
    assert tokens == {"lora": arrays["tokens_0"].tolist(), "base": base["tokens_0"].tolist()}
