"""Every type that OpenAI's and Anthropic's SDKs have for our answers describes them wholly.

The SDKs are generated from the published API descriptions, but read leniently. Here the JSON is checked against their
types: what they require is there, every value is of its type, and fields that they do not know are listed below.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import anthropic.types as anthropic_types
import httpx
import openai
import openai.types as openai_types
import pydantic
import pytest
from openai.types import chat as chat_types
from openai.types import responses as response_types

from tests.e2e.served import serving

pytestmark = pytest.mark.e2e

MODEL = "dynamo-demo"
#: What we add to the APIs: path in the answer's type -> field.
EXTENSIONS = {
    ("ChatCompletionMessage", "reasoning_content"),
    ("ChoiceDelta", "reasoning_content"),
    ("Logprob", "bytes"),  # events of texts have them here, as the texts themselves have in the API
    ("LogprobTopLogprob", "bytes"),
    ("Model", "max_model_len"),
    ("Model", "parent"),
    ("Model", "root"),
    ("ResponseFunctionCallArgumentsDoneEvent", "name"),  # earlier releases of the SDK need it
    ("Response", "store"),  # OpenAI's servers have it too
}
SUM = {"role": "user", "content": "What is 3 plus 4?"}
WEATHER = {"role": "user", "content": "What is the weather in Oslo?"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT_TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
RESPONSE_TOOLS = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": True}]
MESSAGE_TOOLS = [{"name": "get_weather", "input_schema": PARAMETERS}]
#: Requests that show every kind of output: reasoning and text, calls, logprobs, an end by length.
CHATS = {
    "reasoning": {"messages": [SUM], "n": 2},
    "tools": {"messages": [WEATHER], "tools": CHAT_TOOLS},
    "logprobs": {"messages": [SUM], "logprobs": True, "top_logprobs": 2, "max_tokens": 5},
}
RESPONSES = {
    "reasoning": {"input": SUM["content"], "instructions": "Be brief.", "metadata": {"a": "b"}},
    "tools": {"input": WEATHER["content"], "tools": RESPONSE_TOOLS},
    "logprobs": {"input": SUM["content"], "top_logprobs": 2, "reasoning": {"effort": "none"}},
    "incomplete": {"input": SUM["content"], "max_output_tokens": 24},
}
MESSAGES = {
    "thinking": {"messages": [SUM]},
    "tools": {"messages": [WEATHER], "tools": MESSAGE_TOOLS},
    "length": {"messages": [SUM], "max_tokens": 24},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(tmp_path_factory.mktemp("served")) as served:
        served.until_ready()
        with httpx.Client(base_url=f"{served.url}/v1", timeout=60) as made:
            yield made


def unknown_fields(value: Any) -> Iterator[tuple[str, str]]:
    """What the types of a parsed answer do not know: (type, field)."""
    if isinstance(value, pydantic.BaseModel):
        for name in value.model_extra or {}:
            yield type(value).__name__, name
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from unknown_fields(item)


def check(body: Any, kind: Any) -> Any:
    """`body` read as `kind`, without converting what is of another type."""
    parsed = pydantic.TypeAdapter(kind).validate_json(json.dumps(body), strict=True)
    assert set(unknown_fields(parsed)) - EXTENSIONS == set()
    return parsed


def ask(client: httpx.Client, path: str, fields: dict[str, Any]) -> Any:
    response = client.post(path, json={"model": MODEL, "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def events(client: httpx.Client, path: str, fields: dict[str, Any]) -> list[Any]:
    with client.stream("POST", path, json={"model": MODEL, "temperature": 0, "stream": True, **fields}) as response:
        assert response.status_code == 200, response.read()
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("name", CHATS)
def test_chats(client, name):
    answer = check(ask(client, "/chat/completions", CHATS[name]), chat_types.ChatCompletion)
    assert answer.usage.total_tokens > 0
    chunks = events(client, "/chat/completions", {**CHATS[name], "stream_options": {"include_usage": True}})
    for chunk in chunks:
        check(chunk, chat_types.ChatCompletionChunk)
    reasons = {choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]} - {None}
    assert reasons == {choice.finish_reason for choice in answer.choices}


def test_tokens_of_the_reasoning_are_counted_alike_everywhere(client):
    whole = ask(client, "/chat/completions", {"messages": [SUM]})
    reasoning = whole["choices"][0]["message"]["reasoning_content"]
    ids = client.post("/../tokenize", json={"prompt": reasoning, "add_special_tokens": False}).json()["tokens"]
    count = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert count == len(ids) < whole["usage"]["completion_tokens"]
    options = {"stream_options": {"include_usage": True}}
    chunks = events(client, "/chat/completions", {"messages": [SUM], **options})
    assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": count}
    twice = ask(client, "/chat/completions", {"messages": [SUM], "n": 2})
    assert twice["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2 * count}
    response = ask(client, "/responses", {"input": SUM["content"]})
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": count}
    cut = ask(client, "/chat/completions", {"messages": [SUM], "max_tokens": 3})["usage"]
    assert cut["completion_tokens_details"]["reasoning_tokens"] in (2, 3)
    text = ask(client, "/completions", {"prompt": "Once upon a time", "max_tokens": 5})
    assert text["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2}], ids=["plain", "logprobs"])
def test_completions(client, fields):
    body = {"prompt": "Once upon a time", "max_tokens": 5, **fields}
    assert check(ask(client, "/completions", body), openai_types.Completion).choices[0].text
    chunks = events(client, "/completions", {**body, "stream_options": {"include_usage": True}})
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    for choice in choices:
        choice["finish_reason"] = "length"  # the type, made for whole answers, does not know of chunks without one
    for chunk in chunks:
        check(chunk, openai_types.Completion)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(client, encoding):
    body = ask(client, "/embeddings", {"input": ["a fox", "an owl"], "encoding_format": encoding})
    if encoding == "base64":  # the SDK decodes it before it has a type for it
        for item in body["data"]:
            assert isinstance(item["embedding"], str)
            item["embedding"] = [0.0]
    assert len(check(body, openai_types.CreateEmbeddingResponse).data) == 2


@pytest.mark.parametrize("name", RESPONSES)
def test_responses(client, name):
    answer = check(ask(client, "/responses", RESPONSES[name]), response_types.Response)
    kept = client.get(f"/responses/{answer.id}").json()
    assert check(kept, response_types.Response) == answer
    found = [
        check(event, response_types.ResponseStreamEvent) for event in events(client, "/responses", RESPONSES[name])
    ]
    assert found[-1].type == f"response.{answer.status}"
    assert [item.type for item in found[-1].response.output] == [item.type for item in answer.output]


def test_input_items_and_deletion(client):
    first = ask(client, "/responses", RESPONSES["reasoning"])["id"]
    second = ask(client, "/responses", {"input": "And 5 plus 6?", "previous_response_id": first})["id"]
    body = client.get(f"/responses/{second}/input_items").json()
    roles = [item.role for item in reversed(check(body, response_types.ResponseItemList).data)]
    assert roles == ["user", "assistant", "user"]
    with openai.OpenAI(base_url=str(client.base_url), api_key="none", max_retries=0) as sdk:
        sdk.responses.delete(second)
        with pytest.raises(openai.NotFoundError):
            sdk.responses.retrieve(second)


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(client, name):
    fields = {"max_tokens": 100, **MESSAGES[name]}
    answer = check(ask(client, "/messages", fields), anthropic_types.Message)
    found = [
        check(event, anthropic_types.RawMessageStreamEvent)
        for event in _without_pings(events(client, "/messages", fields))
    ]
    assert [event.content_block.type for event in found if event.type == "content_block_start"] == [
        block.type for block in answer.content
    ]
    assert found[-2].delta.stop_reason == answer.stop_reason


def _without_pings(found: list[Any]) -> list[Any]:
    """The SDK has no type for them: it skips them."""
    return [event for event in found if event["type"] != "ping"]


def test_token_counts(client):
    body = client.post("/messages/count_tokens", json={"model": MODEL, "messages": [SUM]}).json()
    assert check(body, anthropic_types.MessageTokensCount).input_tokens > 0


def test_models(client):
    body = client.get("/models").json()
    assert body["object"] == "list"
    for model in (*body["data"], client.get(f"/models/{MODEL}").json()):
        assert check(model, openai_types.Model).id == MODEL


def test_files_and_batches(client):
    row = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": MODEL, "messages": [SUM]},
    }
    with openai.OpenAI(base_url=str(client.base_url), api_key="none", max_retries=0) as sdk:
        upload = sdk.files.create(file=("x.jsonl", io.BytesIO(json.dumps(row).encode())), purpose="batch")
        batch = sdk.batches.create(
            input_file_id=upload.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
        )
        for path, kind in (("/files", openai_types.FileObject), ("/batches", openai_types.Batch)):
            body = client.get(path).json()
            assert (body["object"], body["has_more"]) == ("list", False)
            for item in body["data"]:
                check(item, kind)
                check(client.get(f"{path}/{item['id']}").json(), kind)
        check(client.post(f"/batches/{batch.id}/cancel").json(), openai_types.Batch)
        check(
            client.delete(f"/files/{sdk.files.create(file=('y', b'{}'), purpose='batch').id}").json(),
            openai_types.FileDeleted,
        )


def test_errors(client):
    response = client.post("/chat/completions", json={"model": MODEL, "messages": [SUM], "temperature": 9})
    check(response.json()["error"], openai_types.ErrorObject)
    response = client.post("/messages", json={"model": "none", "max_tokens": 1, "messages": [SUM]})
    check(response.json(), anthropic_types.ErrorResponse)
