"""What shows that the parameters of ``/v1/embeddings``, ``/tokenize`` and ``/detokenize`` work."""

from __future__ import annotations

import base64
import struct

import pytest

from tests.e2e.parameter_effects.api import CAPITAL, CITIES, SUM, Api, Check

EMBEDDINGS = "/v1/embeddings"
HELLO = [{"role": "user", "content": "hello"}]


def embed(api: Api, **fields: object) -> list[list[float]]:
    return [item["embedding"] for item in api.post(EMBEDDINGS, **{"input": "a fox", **fields})["data"]]


def model(api: Api) -> None:
    assert api.post(EMBEDDINGS, input="x")["model"] == "dynamo-demo"
    assert api.refusal(EMBEDDINGS, 404, model="none", input="x") == "model"


def inputs(api: Api) -> None:
    """A text, texts, token ids and lists of them."""
    (fox,) = embed(api)
    ids = api.post("/tokenize", prompt="a fox")["tokens"]
    for same in (["a fox"], ids, [ids]):
        assert embed(api, input=same)[0] == pytest.approx(fox, abs=1e-5)
    two = embed(api, input=["an owl", "a fox"])
    assert two[1] == pytest.approx(fox, abs=1e-5)
    assert two[0] != pytest.approx(fox, abs=1e-3)


def encoding_format(api: Api) -> None:
    raw = base64.b64decode(api.post(EMBEDDINGS, input="a fox", encoding_format="base64")["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(
        embed(api, encoding_format="float")[0], abs=1e-5
    )


def dimensions(api: Api) -> None:
    assert api.refusal(EMBEDDINGS, input="x", dimensions=8) == "dimensions"


def unchanged(api: Api) -> None:
    """What does not change a vector."""
    fox = embed(api)[0]
    for fields in ({"user": "somebody"}, {"cache_salt": "x"}, {"priority": -3}):
        assert embed(api, **fields)[0] == pytest.approx(fox, abs=1e-5)
    assert api.refusal(EMBEDDINGS, input="x", priority=2**40) == "priority"


def tokenized_model(api: Api) -> None:
    """Not needed with one model."""
    named = api.post("/tokenize", prompt="hello")
    unnamed = api.client.post("/tokenize", json={"prompt": "hello"}).json()
    assert named == unnamed
    assert api.refusal("/tokenize", 404, model="none", prompt="x") == "model"
    assert api.refusal("/detokenize", 404, model="none", tokens=[1]) == "model"


def prompt(api: Api) -> None:
    answer = api.post("/tokenize", prompt=CAPITAL)
    assert answer["count"] == len(answer["tokens"])
    assert api.post("/detokenize", tokens=answer["tokens"], skip_special_tokens=True)["prompt"] == CAPITAL


def messages(api: Api) -> None:
    count = api.post("/tokenize", messages=HELLO)["count"]
    body = {"messages": HELLO, "max_tokens": 1}
    assert api.post("/v1/chat/completions", **body)["usage"]["prompt_tokens"] == count


def tools(api: Api) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": CITIES}}
    assert api.post("/tokenize", messages=HELLO, tools=[tool])["count"] > api.post("/tokenize", messages=HELLO)["count"]


def chat_template_kwargs(api: Api) -> None:
    plain = api.post("/tokenize", messages=[{"role": "user", "content": SUM}])
    quiet = api.post(
        "/tokenize", messages=[{"role": "user", "content": SUM}], chat_template_kwargs={"enable_thinking": False}
    )
    assert quiet["count"] > plain["count"]


def add_special_tokens(api: Api) -> None:
    with_special, without = (
        api.post("/tokenize", prompt="hello", add_special_tokens=value)["count"] for value in (True, False)
    )
    assert with_special == without + 1


def add_generation_prompt(api: Api) -> None:
    opened, closed = (
        api.post("/tokenize", messages=HELLO, add_generation_prompt=value)["count"] for value in (True, False)
    )
    assert opened == closed + 1


def continue_final_message(api: Api) -> None:
    turns = [*HELLO, {"role": "assistant", "content": "Well"}]
    goes_on, ended = (
        api.post("/tokenize", messages=turns, continue_final_message=value, add_generation_prompt=False)["count"]
        for value in (True, False)
    )
    assert goes_on == ended - 1


def return_token_strs(api: Api) -> None:
    answer = api.post("/tokenize", prompt="hello", return_token_strs=True)
    assert len(answer["token_strs"]) == answer["count"]
    assert "hello" in "".join(answer["token_strs"])
    assert api.post("/tokenize", prompt="hello")["token_strs"] is None


def tokens(api: Api) -> None:
    assert api.post("/detokenize", tokens=api.token_ids("a small fox"))["text"] == "a small fox"


def skip_special_tokens(api: Api) -> None:
    ids = api.post("/tokenize", prompt="hello")["tokens"]
    plain, skipped = (
        api.post("/detokenize", tokens=ids, skip_special_tokens=value)["prompt"] for value in (False, True)
    )
    assert plain.endswith(skipped)
    assert skipped == "hello" != plain


EMBEDDING_CHECKS: dict[str, Check] = {
    "model": model,
    "input": inputs,
    "encoding_format": encoding_format,
    "dimensions": dimensions,
    "user": unchanged,
    "cache_salt": unchanged,
    "priority": unchanged,
}
TOKEN_CHECKS: dict[str, Check] = {
    "model": tokenized_model,
    "prompt": prompt,
    "messages": messages,
    "tools": tools,
    "chat_template_kwargs": chat_template_kwargs,
    "add_special_tokens": add_special_tokens,
    "add_generation_prompt": add_generation_prompt,
    "continue_final_message": continue_final_message,
    "return_token_strs": return_token_strs,
    "tokens": tokens,
    "skip_special_tokens": skip_special_tokens,
}
