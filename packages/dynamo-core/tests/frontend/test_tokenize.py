"""``/tokenize`` and ``/detokenize``: the ids that requests use, and back."""

from __future__ import annotations

import pytest

TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
HI = [{"role": "user", "content": "Grüße, 世界"}]


async def tokenize(deployment, **fields):
    response = await deployment.client.post(TOKENIZE, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


async def detokenize(deployment, **fields):
    response = await deployment.client.post(DETOKENIZE, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


async def test_text_comes_back(demo):
    answer = await tokenize(demo, model="demo", prompt="Grüße, 世界!", add_special_tokens=False)
    assert answer["count"] == len(answer["tokens"]) > 1
    assert answer["max_model_len"] == demo.frontend.models.get("demo").context_length_tokens
    assert answer["token_strs"] is None
    back = await detokenize(demo, model="demo", tokens=answer["tokens"])
    assert back == {"prompt": "Grüße, 世界!", "text": "Grüße, 世界!"}


async def test_token_strings_make_up_the_text(demo):
    answer = await tokenize(demo, prompt="plain words here", return_token_strs=True, add_special_tokens=False)
    assert "".join(answer["token_strs"]) == "plain words here"
    assert len(answer["token_strs"]) == answer["count"]


async def test_messages_become_the_prompt_that_a_chat_uses(demo):
    answer = await tokenize(demo, messages=HI)
    used = await demo.client.post("/v1/chat/completions", json={"model": "demo", "messages": HI, "max_tokens": 1})
    assert answer["count"] == used.json()["usage"]["prompt_tokens"]
    shorter = await tokenize(demo, messages=HI, add_generation_prompt=False)
    assert answer["tokens"][: shorter["count"]] == shorter["tokens"]
    assert shorter["count"] < answer["count"]
    text = (await detokenize(demo, tokens=answer["tokens"]))["prompt"]
    assert HI[0]["content"] in text
    assert len((await detokenize(demo, tokens=answer["tokens"], skip_special_tokens=True))["prompt"]) < len(text)


async def test_a_prompt_counts_what_a_completion_counts(demo):
    answer = await tokenize(demo, prompt="one two three")
    used = await demo.client.post("/v1/completions", json={"model": "demo", "prompt": "one two three", "max_tokens": 1})
    assert answer["count"] == used.json()["usage"]["prompt_tokens"]


async def test_long_texts_and_nothing_at_all(echo):
    assert await tokenize(echo, prompt="", add_special_tokens=False) | {"max_model_len": 0} == {
        "tokens": [],
        "count": 0,
        "max_model_len": 0,
        "token_strs": None,
    }
    assert (await detokenize(echo, tokens=[]))["prompt"] == ""
    text = "many words " * 30_000
    ids = (await tokenize(echo, prompt=text, add_special_tokens=False))["tokens"]
    assert (await detokenize(echo, tokens=ids))["prompt"] == text


@pytest.mark.parametrize("times", [300_000, 1_100_000], ids=["found out by counting", "found out at once"])
async def test_a_text_of_more_tokens_than_are_given_is_refused(echo, times):
    response = await echo.client.post(TOKENIZE, json={"prompt": "a b " * times})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "prompt")
    assert "more than 500000 tokens" in error["message"]


async def test_without_a_name_there_must_be_one_model(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, {"backend": "echo", "name": "other"})
    await deployment.serves("echo")
    await deployment.serves("other")
    response = await deployment.client.post(TOKENIZE, json={"prompt": "x"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "model"
    assert (await tokenize(deployment, model="other", prompt="x"))["count"] > 0


BAD = {
    "neither": (TOKENIZE, {}, 400, "prompt"),
    "both": (TOKENIZE, {"prompt": "x", "messages": HI}, 400, "prompt"),
    "prompt is a list": (TOKENIZE, {"prompt": ["x"]}, 400, "prompt"),
    "no messages": (TOKENIZE, {"messages": []}, 400, "messages"),
    "bad role": (TOKENIZE, {"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role"),
    "special tokens of a template": (TOKENIZE, {"messages": HI, "add_special_tokens": True}, 400, "add_special_tokens"),
    "unknown model": (TOKENIZE, {"model": "nope", "prompt": "x"}, 404, "model"),
    "no tokens": (DETOKENIZE, {}, 400, "tokens"),
    "tokens is a text": (DETOKENIZE, {"tokens": "x"}, 400, "tokens"),
    "negative token": (DETOKENIZE, {"tokens": [-1]}, 400, "tokens"),
    "token beyond the vocabulary": (DETOKENIZE, {"tokens": [10**8]}, 400, "tokens"),
    "unknown model of tokens": (DETOKENIZE, {"model": "nope", "tokens": [1]}, 404, "model"),
}


@pytest.mark.parametrize("name", BAD)
async def test_malformed_requests(echo, name):
    path, body, status, param = BAD[name]
    response = await echo.client.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == status, error
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
