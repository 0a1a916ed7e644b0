from __future__ import annotations

import numpy as np
import pytest

from dynamo.protocols.llm import SamplingOptions
from dynamo.reference.sampling import Sampler, sample_tokens, token_logprob

NOTHING = np.empty(0, np.int32)
LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))


def _sampler(*, prompt=NOTHING, stop_ids=(), min_tokens=0, seed=0, **options) -> Sampler:
    return Sampler(
        SamplingOptions(**options),
        seed=seed,
        prompt_ids=np.array(prompt, np.int32),
        stop_ids=stop_ids,
        min_tokens=min_tokens,
    )


def _draws(logits=LOGITS, count=4000, **options) -> np.ndarray:
    """Relative frequencies over many seeds."""
    tokens = [_sampler(seed=seed, **options).sample(logits, NOTHING).token_id for seed in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def test_plain_sampling_follows_the_distribution():
    np.testing.assert_allclose(_draws(), [0.4, 0.3, 0.2, 0.1], atol=0.03)


def test_temperature_sharpens_and_flattens():
    sharp = np.array([0.4, 0.3, 0.2, 0.1]) ** 2
    np.testing.assert_allclose(_draws(temperature=0.5), sharp / sharp.sum(), atol=0.03)
    assert _draws(temperature=1e-6, count=50)[0] == 1.0
    np.testing.assert_allclose(_draws(temperature=100.0), [0.25] * 4, atol=0.03)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_k": 1}, 1),
        ({"top_k": 0}, 4),
        ({"top_k": 99}, 4),
        ({"top_p": 0.39}, 1),
        ({"top_p": 0.41}, 2),
        ({"top_p": 0.95}, 4),
        ({"min_p": 0.6}, 2),
        ({"min_p": 1.0}, 1),
        ({"top_k": 3, "top_p": 0.5}, 2),
    ],
)
def test_filters_keep_the_likeliest(options, kept):
    frequencies = _draws(count=600, **options)
    assert (frequencies > 0).tolist() == [True] * kept + [False] * (4 - kept)
    expected = np.array([0.4, 0.3, 0.2, 0.1])[:kept]
    np.testing.assert_allclose(frequencies[:kept], expected / expected.sum(), atol=0.08)


def test_draws_depend_on_seed_and_position_only():
    one, same, other = (_sampler(seed=9), _sampler(seed=9), _sampler(seed=10))
    flat = np.zeros(1000, np.float32)
    outputs = [np.arange(n, dtype=np.int32) for n in range(20)]
    first = [one.sample(flat, output).token_id for output in outputs]
    assert [same.sample(flat, output).token_id for output in reversed(outputs)] == first[::-1]
    assert [other.sample(flat, output).token_id for output in outputs] != first
    assert len(set(first)) > 10


def test_a_requests_own_seed_wins_and_may_be_negative():
    flat = np.zeros(1000, np.float32)
    tokens = {_sampler(seed=engine).sample(flat, NOTHING).token_id for engine in range(10)}
    assert len(tokens) > 5
    samplers = [Sampler(SamplingOptions(seed=-5), seed=engine, prompt_ids=NOTHING) for engine in range(10)]
    assert len({sampler.sample(flat, NOTHING).token_id for sampler in samplers}) == 1


def test_repetition_penalty_counts_prompt_and_output():
    logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    assert _sampler(temperature=0, prompt=[0], repetition_penalty=1.2).sample(logits, NOTHING).token_id == 1
    both = np.array([1], np.int32)
    assert _sampler(temperature=0, prompt=[0], repetition_penalty=1.01).sample(logits, both).token_id == 0
    only = np.array([-1.0, -1.1], np.float32)
    assert _sampler(temperature=0, prompt=[0], repetition_penalty=1.2).sample(only, NOTHING).token_id == 1


def test_frequency_and_presence_penalties_count_the_output_only():
    logits = np.array([1.0, 0.9, 0.0], np.float32)
    output = np.array([0, 0, 0, 1], np.int32)
    assert _sampler(temperature=0, prompt=[0, 0], presence_penalty=0.5).sample(logits, NOTHING).token_id == 0
    assert _sampler(temperature=0, frequency_penalty=0.1).sample(logits, output).token_id == 1  # 0.7, 0.8
    assert _sampler(temperature=0, presence_penalty=0.1).sample(logits, output).token_id == 0  # 0.9, 0.8
    assert _sampler(temperature=0, presence_penalty=2.0).sample(logits, output).token_id == 2


def test_logit_bias_forces_and_forbids():
    assert _sampler(temperature=0, logit_bias={3: 100.0}).sample(LOGITS, NOTHING).token_id == 3
    assert _draws(count=300, logit_bias={0: -100.0})[0] == 0


def test_stop_ids_wait_for_min_tokens():
    sampler = _sampler(temperature=0, stop_ids=[0, 1], min_tokens=2)
    assert sampler.sample(LOGITS, np.array([5], np.int32)).token_id == 2
    assert sampler.sample(LOGITS, np.array([5, 5], np.int32)).token_id == 0


def test_logprobs_are_of_the_models_own_distribution():
    sampled = _sampler(temperature=0, logprobs=2, logit_bias={3: 100.0}).sample(LOGITS, NOTHING)
    assert sampled.token_id == sampled.logprob.token_id == 3
    assert sampled.logprob.logprob == pytest.approx(np.log(0.1), abs=1e-6)
    assert [token for token, _ in sampled.logprob.top] == [0, 1]
    assert sampled.logprob.top[1][1] == pytest.approx(np.log(0.3), abs=1e-6)


@pytest.mark.parametrize("top", [0, 1, 3, 4])
def test_top_logprobs_are_sorted(top):
    logprob = token_logprob(LOGITS[::-1].copy(), 0, top)
    assert logprob.top == sorted(logprob.top, key=lambda pair: -pair[1])
    assert len(logprob.top) == top


def test_extreme_logits_stay_exact():
    logits = np.array([1e30, -1e30, 0.0], np.float32)
    assert _sampler(seed=3).sample(logits, NOTHING).token_id == 0
    assert token_logprob(logits, 0, 0).logprob == 0.0


@pytest.mark.parametrize("logits", [[np.nan, 1.0], [-np.inf, -np.inf]])
def test_logits_without_a_choice_are_an_error_of_that_request(logits):
    rows = np.array([logits, [0.0, 1.0]], np.float32)
    bad, good = sample_tokens([_sampler(temperature=0), _sampler(temperature=0)], rows, [NOTHING, NOTHING])
    assert bad.error is not None
    assert (good.token_id, good.error) == (1, None)
