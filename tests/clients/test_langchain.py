"""LangChain's ChatOpenAI, OpenAI and OpenAIEmbeddings, as their users call them; `ask_langchain.py` does."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

OSLO = "The capital of Norway is Oslo."
WEATHER_CALL = ["get_weather", {"city": "Oslo"}]
CAPITAL = {"country": "Norway", "capital": "Oslo"}


@pytest.fixture(scope="module")
def answers(ask):
    return ask("langchain")


def test_invoke_has_text_usage_and_reason(answers):
    answer = answers["invoke"]
    assert "Oslo" in answer["text"]
    assert (answer["finish_reason"], answer["model"]) == ("stop", "dynamo-demo")
    usage = answer["usage"]
    assert 0 < usage["output_tokens"] == usage["total_tokens"] - usage["input_tokens"]


def test_stream_adds_up_to_the_whole_answer(answers):
    streamed = answers["stream"]
    assert streamed["text"] == OSLO
    assert streamed["chunks"] > 2
    (usage,) = streamed["usages"]
    assert usage["output_tokens"] == answers["batch"][0]["usage"]["output_tokens"]


def test_batch_keeps_the_order(answers):
    first, second, third = answers["batch"]
    assert first["text"] == third["text"] == OSLO
    assert "7" in second["text"]
    assert "<think>" not in second["text"]


def test_tools_are_called_and_their_results_used(answers):
    assert answers["tools"]["calls"] == [WEATHER_CALL]
    assert "Oslo" in answers["tools"]["answer"]["text"]
    assert "7" in answers["tools"]["answer"]["text"]
    assert answers["streamed_tools"] == [WEATHER_CALL]


def test_a_named_tool_is_forced(answers):
    """The question asks for none."""
    ((name, arguments),) = answers["forced_tool"]
    assert name == "get_weather"
    assert arguments["city"] in ("Oslo", "Rome")


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output_by_every_method(answers, method):
    assert answers["structured_output"][method] == CAPITAL


def test_logprobs_are_read(answers):
    content = answers["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content).startswith(OSLO)
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in content)


def test_the_responses_api_whole_and_streamed(answers):
    assert answers["responses"] == [["reasoning", "text"]] * 2


def test_completions_whole_and_streamed(answers):
    whole, streamed = answers["completions"]
    assert whole == streamed != ""


def test_embeddings(answers):
    fox, owl = answers["embeddings"]["documents"]
    assert answers["embeddings"]["query"] == pytest.approx(fox, abs=1e-5)
    assert len(fox) == len(owl) > 0
    assert fox != owl


def test_errors_are_the_ones_of_openai(answers):
    assert answers["errors"] == {"model": [404, "model"], "temperature": [400, "temperature"]}
