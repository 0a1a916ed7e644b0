"""Sampling options in vLLM's words."""

from __future__ import annotations

import msgspec
import pytest

from dynamo.errors import InvalidRequest
from dynamo.protocols.llm import PreprocessedRequest, SamplingOptions, StopConditions, pack_token_ids
from dynamo.vllm import sampling
from dynamo.vllm.sampling import sampling_arguments


def request(ids=(1, 2, 3), **fields) -> PreprocessedRequest:
    return PreprocessedRequest("r", "m", pack_token_ids(list(ids)), **fields)


def test_every_option_of_the_protocol_is_mapped():
    assert set(SamplingOptions.__struct_fields__) == sampling._MAPPED
    assert set(StopConditions.__struct_fields__) == sampling._MAPPED_STOPS


def test_options_arrive_one_by_one():
    options = SamplingOptions(0.5, 0.9, 20, 0.1, 0.2, 0.3, 1.1, 7, {3: 1.5}, 2, 1)
    stop = StopConditions(max_tokens=9, min_tokens=4, stop_token_ids=[5], ignore_eos=True)
    assert sampling_arguments(request(sampling=options, stop=stop)) == {
        **msgspec.structs.asdict(options),
        **msgspec.structs.asdict(stop),
    }


def test_an_option_that_came_later_is_refused_not_dropped():
    class Later(SamplingOptions, frozen=True):
        mirostat: float = 0.0

    assert sampling_arguments(request(sampling=Later()))["top_k"] == 0
    with pytest.raises(InvalidRequest, match="does not support mirostat") as refusal:
        sampling_arguments(request(sampling=Later(mirostat=0.5)))
    assert refusal.value.param == "mirostat"


def test_the_seed_that_means_none_to_vllm_stays_a_seed():
    assert sampling_arguments(request(sampling=SamplingOptions(seed=-1)))["seed"] == (1 << 63) - 1
    assert sampling_arguments(request(sampling=SamplingOptions(seed=0)))["seed"] == 0


def test_min_tokens_count_what_an_earlier_worker_made():
    stop = StopConditions(max_tokens=10, min_tokens=4)
    assert sampling_arguments(request([1, 2, 3, 4], prior_output_tokens=3, stop=stop))["min_tokens"] == 1
    assert sampling_arguments(request([1, 2, 3, 4, 5, 6], prior_output_tokens=5, stop=stop))["min_tokens"] == 0


def test_penalties_of_earlier_output_become_a_bias():
    options = SamplingOptions(frequency_penalty=0.5, presence_penalty=0.25, logit_bias={8: 1.0, 2: 1.0})
    bias = sampling_arguments(request([1, 7, 7, 8], prior_output_tokens=3, sampling=options))["logit_bias"]
    assert bias == {7: -1.25, 8: 0.25, 2: 1.0}
    assert options.logit_bias == {8: 1.0, 2: 1.0}


def test_without_penalties_there_is_no_bias():
    assert sampling_arguments(request([1, 7], prior_output_tokens=1))["logit_bias"] is None
