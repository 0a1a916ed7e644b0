"""Asks a frontend through each of its four generating endpoints, and reads their answers alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx

MODEL = "dynamo-demo"
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
CAPITAL = "What is the capital of Norway?"
OSLO = "The capital of Norway is Oslo."
START = "Once upon a time"
SUM = "What is 3 plus 4?"
STORY = "Tell me a story about a fox."
WEATHER = "What is the weather in Oslo?"
CITIES = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
#: Short, as the demo model never ends a text by itself when a grammar keeps it from saying what it would.
WORD = {"type": "string", "maxLength": 12}
COUNTRY = {
    "type": "object",
    "properties": {"country": WORD, "capital": WORD},
    "required": ["country", "capital"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Answer:
    """What a generating endpoint answered."""

    body: dict[str, Any]
    text: str
    tokens: int
    cached: int
    reason: str
    """As chat completions name it."""
    reasoning: str = ""
    calls: Sequence[tuple[str, dict[str, Any]]] = ()


class Api:
    """A frontend, as its clients see it."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=60)

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        response = self.client.post(path, json={"model": MODEL, **fields})
        assert response.status_code == 200, f"{fields}: {response.text}"
        return response.json()

    def get(self, path: str, **query: Any) -> Any:
        response = self.client.get(path, params=query)
        assert response.status_code == 200, response.text
        return response.json()

    def refusal(self, path: str, status: int = 400, **fields: Any) -> str | None:
        """The parameter that the error names; in Anthropic's form errors name none, but their message does."""
        response = self.client.post(path, json={"model": MODEL, **fields})
        assert response.status_code == status, response.text
        error = response.json()["error"]
        return error["param"] if "param" in error else error["message"]

    def events(self, path: str, **fields: Any) -> list[dict[str, Any]]:
        """The data of a stream's events, without OpenAI's end mark."""
        body = {"model": MODEL, "stream": True, **fields}
        with self.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200, response.read()
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    def token_ids(self, text: str) -> list[int]:
        return self.post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]

    def token_id(self, text: str) -> int:
        (only,) = self.token_ids(text)
        return only


@dataclass(frozen=True)
class Dialect:
    """One of the generating endpoints."""

    path: str
    limit: str
    """Its parameter for the most tokens of an answer."""
    prompt: Callable[[str], dict[str, Any]]
    """The fields that ask for a text."""
    read: Callable[[dict[str, Any]], Answer]
    story: str = STORY
    """What the model answers with a story."""

    def ask(self, api: Api, text: str = CAPITAL, /, **fields: Any) -> Answer:
        """A greedy answer, unless `fields` say otherwise."""
        limit = {} if self.limit in fields else {self.limit: 100}
        return self.read(api.post(self.path, **{"temperature": 0, **limit, **self.prompt(text), **fields}))


#: Proves that a parameter has the effect that the reference page gives it.
Check: TypeAlias = Callable[[Api], None]
#: The same of a parameter that several endpoints have.
SharedCheck: TypeAlias = Callable[[Api, Dialect], None]


def _user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _chat(body: dict[str, Any]) -> Answer:
    choice, usage = body["choices"][0], body["usage"]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return Answer(
        body,
        message["content"] or "",
        usage["completion_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
        choice["finish_reason"],
        message.get("reasoning_content", ""),
        [(call["name"], json.loads(call["arguments"])) for call in calls],
    )


def _completion(body: dict[str, Any]) -> Answer:
    choice, usage = body["choices"][0], body["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Answer(body, choice["text"], usage["completion_tokens"], cached, choice["finish_reason"])


def _response(body: dict[str, Any]) -> Answer:
    by_type: dict[str, list[dict[str, Any]]] = {}
    for item in body["output"]:
        by_type.setdefault(item["type"], []).append(item)
    details = body["usage"]["input_tokens_details"]
    return Answer(
        body,
        "".join(part["text"] for item in by_type.get("message", ()) for part in item["content"]),
        body["usage"]["output_tokens"],
        details["cached_tokens"],
        "stop" if body["status"] == "completed" else "length",
        "".join(part["text"] for item in by_type.get("reasoning", ()) for part in item["content"]),
        [(item["name"], json.loads(item["arguments"])) for item in by_type.get("function_call", ())],
    )


def _message(body: dict[str, Any]) -> Answer:
    blocks, usage = body["content"], body["usage"]
    reasons = {"max_tokens": "length", "tool_use": "tool_calls"}
    return Answer(
        body,
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        usage["output_tokens"],
        usage["cache_read_input_tokens"],
        reasons.get(body["stop_reason"], "stop"),
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"],
    )


chat = Dialect(CHAT, "max_completion_tokens", _user, _chat)
completions = Dialect(COMPLETIONS, "max_tokens", lambda text: {"prompt": text}, _completion, START)
responses = Dialect(RESPONSES, "max_output_tokens", lambda text: {"input": text}, _response)
messages = Dialect(MESSAGES, "max_tokens", _user, _message)
