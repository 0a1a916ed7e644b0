from __future__ import annotations

import json

import numpy as np
import pytest

from dynamo.errors import EngineError
from dynamo.protocols.llm import SamplingOptions
from dynamo.reference.loading import load_model
from dynamo.reference.settings import parse_flags


@pytest.fixture
def llama(load_case, golden):
    """A loaded core, the first golden prompt and its continuation."""

    def start(*flags: str):
        arrays = golden("llama")
        return load_case("llama", *flags).core, arrays["prompt_0"].tolist(), arrays["tokens_0"].tolist()

    return start


def _tokens(stream) -> list[int]:
    return [token for output in stream for token in output.token_ids]


def test_outputs_are_deltas_in_growing_steps_and_the_last_has_usage(llama, make_request, run_core):
    core, prompt, expected = llama()
    core.add("a", make_request(prompt, max_tokens=5, ignore_eos=True))
    stream = run_core(core)["a"]
    assert [output.token_ids for output in stream] == [[token] for token in expected[:5]]
    assert [output.step for output in stream] == sorted({output.step for output in stream})
    assert [output.finish_reason for output in stream] == [None] * 4 + ["length"]
    assert all(output.usage is None for output in stream[:-1])
    usage = stream[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (33, 5, 0)


def test_a_stop_id_ends_the_stream_and_is_not_in_it(llama, make_request, run_core):
    core, prompt, expected = llama()
    stop = expected[3]
    assert stop not in expected[:3]
    core.add("a", make_request(prompt, max_tokens=9, stop_token_ids=[stop], ignore_eos=True))
    stream = run_core(core)["a"]
    assert _tokens(stream) == expected[:3]
    assert (stream[-1].finish_reason, stream[-1].stop_reason) == ("stop", stop)
    assert stream[-1].usage.completion_tokens == 3


def test_end_of_sequence_has_no_stop_reason_unless_ignored(tiny_models, golden, make_request, run_core, tmp_path):
    arrays = golden("llama")
    prompt, expected = arrays["prompt_0"].tolist(), arrays["tokens_0"].tolist()
    directory = tiny_models.write_model(tmp_path, "llama")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, expected[2]]}))
    core = load_model(directory, parse_flags([])).core
    core.add("stops", make_request(prompt, max_tokens=9))
    core.add("ignores", make_request(prompt, max_tokens=9, ignore_eos=True))
    streams = run_core(core)
    assert _tokens(streams["stops"]) == expected[:2]
    assert (streams["stops"][-1].finish_reason, streams["stops"][-1].stop_reason) == ("stop", None)
    assert _tokens(streams["ignores"]) == expected[:9]


def test_min_tokens_holds_the_end_back(llama, make_request, run_core):
    core, prompt, expected = llama()
    core.add("a", make_request(prompt, max_tokens=6, min_tokens=4, stop_token_ids=[expected[1]], ignore_eos=True))
    tokens = _tokens(run_core(core)["a"])
    assert tokens[0] == expected[0]
    assert expected[1] not in tokens[:4]
    assert len(tokens) >= 4


def test_output_is_cut_at_the_context_length(llama, make_request, run_core):
    core, prompt, expected = llama("--max-model-len", "40")
    core.add("open", make_request(prompt, ignore_eos=True))
    core.add("beyond", make_request(prompt, max_tokens=1000, ignore_eos=True))
    for stream in run_core(core).values():
        assert _tokens(stream) == expected[:7]
        assert stream[-1].finish_reason == "length"


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.9, "seed": 11}, {"temperature": 1.0, "seed": 3, "top_p": 0.9}]
)
def test_a_migrated_stream_goes_on_as_if_it_had_stayed(llama, make_request, run_core, options):
    penalties = {"frequency_penalty": 0.4, "presence_penalty": 0.2, "repetition_penalty": 1.1, "min_tokens": 12}
    core, prompt, _ = llama()
    core.add("whole", make_request(prompt, max_tokens=16, **penalties, **options))
    whole = _tokens(run_core(core)["whole"])
    assert len(whole) >= 12
    for cut in (1, 6, 11):
        other, _, _ = llama("--seed", "99")
        request = make_request(
            prompt + whole[:cut], max_tokens=16 - cut, prior_output_tokens=cut, **penalties, **options
        )
        other.add("rest", request)
        stream = run_core(other)["rest"]
        assert _tokens(stream) == whole[cut:]
        assert stream[-1].usage.prompt_tokens == len(prompt)
        assert stream[-1].usage.completion_tokens == len(whole) - cut


def test_the_engine_seed_makes_unseeded_requests_repeatable(llama, make_request, run_core):
    outputs = []
    for seed in ("1", "1", "2"):
        core, prompt, _ = llama("--seed", seed)
        core.add("a", make_request(prompt, max_tokens=12, temperature=1.5, ignore_eos=True))
        outputs.append(_tokens(run_core(core)["a"]))
    assert outputs[0] == outputs[1] != outputs[2]


def test_logprobs_come_with_every_token(llama, make_request, run_core):
    core, prompt, expected = llama()
    core.add("a", make_request(prompt, max_tokens=4, logprobs=3, ignore_eos=True))
    stream = run_core(core)["a"]
    for output, token in zip(stream, expected, strict=False):
        (logprob,) = output.logprobs
        assert logprob.token_id == token
        assert logprob.top[0] == (token, logprob.logprob)
        assert len(logprob.top) == 3


@pytest.mark.parametrize("flags", [(), ("--max-num-batched-tokens", "8", "--max-num-seqs", "2")])
def test_prompt_logprobs_equal_the_golden_logits(llama, golden, make_request, run_core, flags):
    core, prompt, _ = llama(*flags)
    core.add("cached", make_request(prompt, max_tokens=1, ignore_eos=True))
    run_core(core)
    core.add("a", make_request(prompt, max_tokens=2, prompt_logprobs=1, ignore_eos=True))
    first, second = run_core(core)["a"]
    logits = golden("llama")["logits"].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert first.prompt_logprobs[0] is None
    assert [entry.token_id for entry in first.prompt_logprobs[1:]] == prompt[1:]
    expected = logprobs[np.arange(len(prompt) - 1), prompt[1:]]
    np.testing.assert_allclose([entry.logprob for entry in first.prompt_logprobs[1:]], expected, atol=1e-4)
    assert second.prompt_logprobs is None


def test_a_request_beyond_its_deadline_is_cancelled_wherever_it_is(llama, make_request):
    core, prompt, _ = llama("--max-num-seqs", "1")
    core.add("running", make_request(prompt, max_tokens=50, deadline_unix_seconds=100.0, ignore_eos=True))
    core.add("waiting", make_request(prompt, max_tokens=50, deadline_unix_seconds=100.0))
    core.add("patient", make_request(prompt, max_tokens=1, deadline_unix_seconds=900.0, ignore_eos=True))
    core.step(99.0)
    assert [key for key, _ in core.take_result().items] == ["running"]
    core.step(100.0)
    items = core.take_result().items
    assert [(key, item.finish_reason) for key, item in items[:2]] == [
        ("running", "cancelled"),
        ("waiting", "cancelled"),
    ]
    assert [(key, item.finish_reason) for key, item in items[2:]] == [("patient", "length")]
    assert core.pool.used == 0


def test_abort_frees_blocks_and_is_idempotent(llama, make_request):
    core, prompt, _ = llama()
    core.add("a", make_request(prompt, max_tokens=50, ignore_eos=True))
    core.step(0.0)
    assert core.load().used_kv_blocks == 3
    core.abort("a")
    core.abort("a")
    core.abort("never seen")
    items = core.take_result().items
    assert [item.finish_reason for _, item in items] == [None, "cancelled"]
    assert items[-1][1].usage.completion_tokens == 1
    assert core.load().used_kv_blocks == 0
    assert not core.has_work


def test_load_tells_prefill_from_decode(llama, make_request):
    core, prompt, _ = llama("--max-num-batched-tokens", "16", "--max-num-seqs", "2", "--no-enable-prefix-caching")
    for key in "abc":
        core.add(key, make_request(prompt, max_tokens=5, ignore_eos=True))
    core.step(0.0)
    load = core.load()
    assert (load.running_requests, load.waiting_requests) == (1, 2)
    assert load.active_prefill_tokens == 33 - 16
    assert load.active_decode_blocks == 0
    core.step(0.0)
    core.step(0.0)
    assert core.load().active_decode_blocks == 3
    assert core.load().total_kv_blocks == core.pool.num_blocks


def test_priority_goes_before_arrival(llama, make_request, run_core):
    core, prompt, _ = llama("--max-num-seqs", "1", "--no-enable-prefix-caching")
    for key, priority in (("low", 5), ("high", -1), ("middle", 0)):
        core.add(key, make_request(prompt, max_tokens=2, priority=priority, ignore_eos=True))
    streams = run_core(core)
    assert sorted(streams, key=lambda key: streams[key][0].step) == ["high", "middle", "low"]


def test_decoding_goes_on_while_a_long_prompt_is_prefilled(llama, make_request, run_core):
    core, prompt, _ = llama("--max-num-batched-tokens", "8", "--max-num-seqs", "2", "--no-enable-prefix-caching")
    core.add("decoding", make_request(prompt[:5], max_tokens=20, ignore_eos=True))
    core.step(0.0)
    core.add("long", make_request(prompt * 2, max_tokens=1, ignore_eos=True))
    streams = run_core(core)
    steps = [output.step for output in streams["decoding"]]
    assert steps == list(range(1, 21))  # not one step without a token
    assert streams["long"][-1].step == 1 + -(-66 // 7)  # 7 of 8 tokens per step are left to the prompt


def test_without_prefix_caching_nothing_is_reused_or_announced(llama, make_request, run_core):
    core, prompt, _ = llama("--no-enable-prefix-caching")
    for key in "ab":
        core.add(key, make_request(prompt, max_tokens=3, ignore_eos=True))
        (output,) = [item for item in run_core(core)[key] if item.finish_reason]
        assert output.usage.cached_tokens == 0
    assert core.pool.cached_names() == set()


def test_a_request_that_cannot_go_on_fails_alone(llama, make_request, run_core):
    core, prompt, expected = llama()

    class Nothing:
        finished = False

        def mask(self, logits):
            logits[:] = -np.inf

        def accept(self, token_id):
            raise AssertionError("no token was allowed")

    core.add("stuck", make_request(prompt, max_tokens=3), guide=Nothing())
    core.add("fine", make_request(prompt, max_tokens=3, ignore_eos=True))
    streams = run_core(core)
    assert isinstance(streams["stuck"][-1], EngineError)
    assert _tokens(streams["fine"]) == expected[:3]
    assert core.pool.used == 0


def test_sampling_options_default_to_the_plain_distribution(llama, make_request, run_core):
    core, prompt, _ = llama()
    request = make_request(prompt, max_tokens=3, ignore_eos=True, temperature=SamplingOptions().temperature)
    core.add("a", request)
    assert len(_tokens(run_core(core)["a"])) == 3
