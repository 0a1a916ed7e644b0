"""LiteLLM as a client, through OpenAI's API and through Anthropic's; `ask_litellm.py` does."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

OSLO = "The capital of Norway is Oslo."
WEATHER_CALL = ["get_weather", {"city": "Oslo"}]
APIS = ["openai", "anthropic"]


@pytest.fixture(scope="module")
def answers(ask):
    return ask("litellm")


@pytest.mark.parametrize("api", APIS)
def test_whole_and_streamed_answers_are_the_same(answers, api):
    whole, streamed = answers[api]["completion"], answers[api]["stream"]
    assert (whole["text"], whole["finish_reason"]) == (OSLO, "stop")
    prompt, completion, total = whole["usage"]
    assert 0 < completion == total - prompt
    assert streamed.pop("chunks") > 2
    assert streamed == whole


@pytest.mark.parametrize("api", APIS)
def test_reasoning_is_apart_from_content(answers, api):
    for reasoning, content in answers[api]["reasoning"]:
        assert "3 + 4 = 7" in reasoning
        assert content.strip() == "3 plus 4 is 7."


@pytest.mark.parametrize("api", APIS)
def test_tools_are_called_and_their_results_used(answers, api):
    assert answers[api]["tools"]["calls"] == [WEATHER_CALL]
    assert "Oslo" in answers[api]["tools"]["answer"]["text"]
    assert answers[api]["streamed_tools"] == [WEATHER_CALL]


@pytest.mark.parametrize("api", APIS)
def test_errors_are_the_ones_of_the_api(answers, api):
    assert answers[api]["errors"] == {"model": ["NotFoundError", 404], "temperature": ["BadRequestError", 400]}


def test_embeddings_completions_and_responses(answers):
    found = answers["openai_only"]
    assert found["embedding"]["sizes"][0] == found["embedding"]["sizes"][1] > 0
    assert found["embedding"]["usage"] > 0
    assert found["text_completion"]["text"]
    assert found["text_completion"]["tokens"] == 5
    assert found["responses"] == ["reasoning", "message"]
