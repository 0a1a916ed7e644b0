from __future__ import annotations

import msgspec
import pytest

from dynamo.errors import InvalidRequest
from dynamo.reference.admission import RequestLimits, check_request

LIMITS = RequestLimits(vocab_size=96, max_model_len=32)


@pytest.mark.parametrize(
    ("prompt", "options", "param"),
    [
        ([], {}, "token_ids"),
        ([96], {}, "token_ids"),
        ([2**32 - 1], {}, "token_ids"),
        ([5] * 32, {}, "token_ids"),
        ([5] * 33, {"embed": True}, "token_ids"),
        ([5, 6], {"prior_output_tokens": 2}, "prior_output_tokens"),
        ([5, 6], {"prior_output_tokens": -1}, "prior_output_tokens"),
        ([5], {"max_tokens": 0}, "max_tokens"),
        ([5], {"max_tokens": -3}, "max_tokens"),
        ([5], {"dp_rank": 1}, "dp_rank"),
        ([5], {"stop_token_ids": [96]}, "stop_token_ids"),
        ([5], {"stop_token_ids": [-1]}, "stop_token_ids"),
        ([5], {"temperature": -0.1}, "temperature"),
        ([5], {"temperature": float("nan")}, "temperature"),
        ([5], {"top_p": 0.0}, "top_p"),
        ([5], {"top_p": 1.5}, "top_p"),
        ([5], {"top_k": -2}, "top_k"),
        ([5], {"min_p": 2.0}, "min_p"),
        ([5], {"frequency_penalty": float("inf")}, "frequency_penalty"),
        ([5], {"repetition_penalty": 0.0}, "repetition_penalty"),
        ([5], {"logprobs": 1000}, "logprobs"),
        ([5], {"prompt_logprobs": -1}, "prompt_logprobs"),
        ([5], {"logit_bias": {96: 1.0}}, "logit_bias"),
        ([5], {"logit_bias": {3: float("nan")}}, "logit_bias"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(make_request, prompt, options, param):
    with pytest.raises(InvalidRequest) as caught:
        check_request(make_request(prompt, **options), LIMITS)
    assert caught.value.param == param


def test_context_overflow_carries_the_reason_clients_look_for(make_request):
    with pytest.raises(InvalidRequest, match="40 tokens; this model takes 32") as caught:
        check_request(make_request([5] * 40), LIMITS)
    assert caught.value.reason == "context_length_exceeded"
    assert caught.value.to_openai()["error"]["code"] == "context_length_exceeded"


def test_token_ids_that_are_not_whole(make_request):
    request = msgspec.structs.replace(make_request([5]), token_ids=b"12345")
    with pytest.raises(InvalidRequest, match="packed uint32"):
        check_request(request, LIMITS)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0, "top_k": -1, "logprobs": 0}, {"embed": True}, {"logit_bias": {0: -100.0}}]
)
def test_good_requests_pass(make_request, options):
    check_request(make_request([5] * 31, **options), LIMITS)
    assert check_request(make_request([5] * 31, prior_output_tokens=30), LIMITS) is None
