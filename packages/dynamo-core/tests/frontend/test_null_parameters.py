"""A parameter that is null counts as not given: clients of typed languages write all of their fields."""

from __future__ import annotations

import msgspec
import pytest

from dynamo.frontend.embeddings import EmbeddingRequest
from dynamo.frontend.messages import MessageRequest, TokenCountRequest
from dynamo.frontend.requests import ChatRequest, CompletionRequest
from dynamo.frontend.responses import ResponseRequest
from dynamo.frontend.tokenization import DetokenizeRequest, TokenizeRequest

HI = [{"role": "user", "content": "hi"}]
#: Path, what its bodies are read as, and the least of a body.
ENDPOINTS = [
    ("/v1/chat/completions", ChatRequest, {"messages": HI}),
    ("/v1/completions", CompletionRequest, {"prompt": "hi"}),
    ("/v1/responses", ResponseRequest, {"input": "hi"}),
    ("/v1/messages", MessageRequest, {"messages": HI, "max_tokens": 9}),
    ("/v1/messages/count_tokens", TokenCountRequest, {"messages": HI}),
    ("/v1/embeddings", EmbeddingRequest, {"input": "hi"}),
    ("/tokenize", TokenizeRequest, {"prompt": "hi"}),
    ("/detokenize", DetokenizeRequest, {"tokens": [5]}),
]


@pytest.mark.parametrize("strict", [False, True])
async def test_null_is_the_default(make_deployment, strict):
    deployment = await make_deployment({"backend": "echo"}, strict=strict)
    await deployment.serves("echo")
    for path, kind, least in ENDPOINTS:
        given = {"model": "echo", **least}
        nulls = {field.encode_name: None for field in msgspec.structs.fields(kind)}
        answers = [await deployment.client.post(path, json=body) for body in (given, {**nulls, **given})]
        assert [answer.status_code for answer in answers] == [200, 200], (path, answers[1].text)
        without, with_nulls = (answer.json().get("usage") for answer in answers)
        assert without == with_nulls


@pytest.mark.parametrize("path", [path for path, _, _ in ENDPOINTS if path != "/tokenize"])
async def test_what_is_required_is_missing_when_it_is_null(echo, path):
    least = next(least for other, _, least in ENDPOINTS if other == path)
    name = next(iter(least))
    response = await echo.client.post(path, json={"model": "echo", **least, name: None})
    error = response.json()["error"]
    assert response.status_code == 400
    assert f"'{name}'" in error["message"]
    assert error.get("param", name) == name
