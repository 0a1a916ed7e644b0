"""What LiteLLM makes of a server's answers, as one line of JSON: ``python ask_litellm.py URL``.

`test_litellm.py` runs it in LiteLLM's own environment and checks what it says.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

MODEL = "dynamo-demo"
CAPITAL = [{"role": "user", "content": "What is the capital of Norway?"}]
SUM = [{"role": "user", "content": "What is 3 plus 4?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Oslo?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "x", "parameters": PARAMETERS}}]


class Asker:
    """One method per question; each returns what LiteLLM understood, of the API that it was made for."""

    def __init__(self, **server: Any) -> None:
        self._server = {"api_key": "none", "num_retries": 0, "temperature": 0, **server}

    def completion(self) -> Any:
        return _facts(litellm.completion(messages=CAPITAL, **self._server))

    def stream(self) -> Any:
        chunks = list(
            litellm.completion(messages=CAPITAL, stream=True, stream_options={"include_usage": True}, **self._server)
        )
        return {"chunks": len(chunks), **_facts(litellm.stream_chunk_builder(chunks, messages=CAPITAL))}

    def reasoning(self) -> Any:
        whole = litellm.completion(messages=SUM, **self._server)
        chunks = list(litellm.completion(messages=SUM, stream=True, **self._server))
        both = (whole, litellm.stream_chunk_builder(chunks, messages=SUM))
        return [[answer.choices[0].message.reasoning_content, answer.choices[0].message.content] for answer in both]

    def tools(self) -> Any:
        """A call, its result, and the answer that the model makes of it."""
        asked = litellm.completion(messages=WEATHER, tools=TOOLS, **self._server).choices[0].message
        content = json.dumps({"city": "Oslo", "temperature": 7, "condition": "rain"})
        result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": content}
        answer = litellm.completion(messages=[*WEATHER, asked, result], tools=TOOLS, **self._server)
        return {"calls": _calls(asked), "answer": _facts(answer)}

    def streamed_tools(self) -> Any:
        chunks = list(litellm.completion(messages=WEATHER, tools=TOOLS, stream=True, **self._server))
        return _calls(litellm.stream_chunk_builder(chunks, messages=WEATHER).choices[0].message)

    def errors(self) -> Any:
        found = {}
        provider = self._server["model"].partition("/")[0]
        for name, change in {"model": {"model": f"{provider}/none"}, "temperature": {"temperature": 9}}.items():
            try:
                litellm.completion(messages=CAPITAL, **{**self._server, **change})
            except litellm.exceptions.APIError as error:
                found[name] = [type(error).__name__, error.status_code]
            except (litellm.NotFoundError, litellm.BadRequestError) as error:
                found[name] = [type(error).__name__, error.status_code]
        return found


def _openai_only(url: str) -> dict[str, Any]:
    """What LiteLLM has for OpenAI's other endpoints."""
    server = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
    texts = {**server, "model": f"text-completion-openai/{MODEL}"}
    embedded = litellm.embedding(input=["a fox", "an owl"], **server)
    return {
        "embedding": {
            "sizes": [len(item["embedding"]) for item in embedded.data],
            "usage": embedded.usage.prompt_tokens,
        },
        "text_completion": _text(litellm.text_completion(prompt="Once upon a time", max_tokens=5, **texts)),
        "responses": [item.type for item in litellm.responses(input=SUM[0]["content"], **server).output],
    }


def _text(answer: Any) -> dict[str, Any]:
    return {"text": answer.choices[0].text, "tokens": answer.usage.completion_tokens}


def _facts(answer: Any) -> dict[str, Any]:
    choice = answer.choices[0]
    usage = [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens]
    return {"text": choice.message.content, "finish_reason": choice.finish_reason, "usage": usage}


def _calls(message: Any) -> list[list[Any]]:
    return [[call.function.name, json.loads(call.function.arguments)] for call in message.tool_calls]


def main(url: str) -> None:
    askers = {
        "openai": Asker(model=f"openai/{MODEL}", api_base=f"{url}/v1"),
        "anthropic": Asker(model=f"anthropic/{MODEL}", api_base=url, max_tokens=100),
    }
    questions = [name for name in vars(Asker) if not name.startswith("_")]
    answers = {api: {name: getattr(asker, name)() for name in questions} for api, asker in askers.items()}
    print(json.dumps({**answers, "openai_only": _openai_only(url)}))


if __name__ == "__main__":
    main(sys.argv[1])
