"""What LangChain makes of a server's answers, as one line of JSON: ``python ask_langchain.py URL``.

`test_langchain.py` runs it in LangChain's own environment and checks what it says.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

MODEL = "dynamo-demo"
CAPITAL = "What is the capital of Norway?"
SUM = "What is 3 plus 4?"
WEATHER = "What is the weather in Oslo?"
SHORT = {"type": "string", "maxLength": 12}
#: How `with_structured_output` takes it.
SCHEMA = {
    "title": "Capital",
    "description": "A country and its capital.",
    "type": "object",
    "properties": {"country": SHORT, "capital": SHORT},
    "required": ["country", "capital"],
    "additionalProperties": False,
}


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return json.dumps({"city": city, "temperature": 7, "condition": "rain"})


class Asker:
    """One method per question; each returns what LangChain understood."""

    def __init__(self, url: str) -> None:
        self._server: dict[str, Any] = {"model": MODEL, "base_url": f"{url}/v1", "api_key": "none"}
        self._chat = ChatOpenAI(**self._server, temperature=0, max_retries=0)

    def invoke(self) -> Any:
        return _facts(self._chat.invoke([SystemMessage("You are brief."), HumanMessage(CAPITAL)]))

    def stream(self) -> Any:
        chunks = list(self._chat.stream(CAPITAL, stream_usage=True))
        usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
        return {"text": "".join(str(chunk.content) for chunk in chunks), "chunks": len(chunks), "usages": usages}

    def batch(self) -> Any:
        return [_facts(message) for message in self._chat.batch([CAPITAL, SUM, CAPITAL])]

    def tools(self) -> Any:
        """A call, its result, and the answer that the model makes of it."""
        bound = self._chat.bind_tools([get_weather])
        question = HumanMessage(WEATHER)
        asked = bound.invoke([question])
        result = get_weather.invoke(asked.tool_calls[0])
        assert isinstance(result, ToolMessage)
        return {"calls": _calls(asked), "answer": _facts(bound.invoke([question, asked, result]))}

    def streamed_tools(self) -> Any:
        first, *rest = self._chat.bind_tools([get_weather]).stream(WEATHER)
        return _calls(sum(rest, start=first))

    def forced_tool(self) -> Any:
        """Of two cities: the demo model is too small to end a text of its own when a grammar keeps it from stopping."""
        parameters = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
        choosy = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
        return _calls(self._chat.bind_tools([choosy], tool_choice="get_weather").invoke(CAPITAL))

    def structured_output(self) -> Any:
        methods = ("json_schema", "function_calling", "json_mode")
        question = "Answer as JSON: what is the capital of Norway?"
        return {method: self._chat.with_structured_output(SCHEMA, method=method).invoke(question) for method in methods}

    def logprobs(self) -> Any:
        return self._chat.bind(logprobs=True, top_logprobs=2).invoke(CAPITAL).response_metadata["logprobs"]

    def responses(self) -> Any:
        chat = ChatOpenAI(**self._server, temperature=0, use_responses_api=True, output_version="responses/v1")
        whole = chat.invoke(SUM)
        first, *rest = chat.stream(SUM)
        return [[block["type"] for block in message.content] for message in (whole, sum(rest, start=first))]

    def completions(self) -> Any:
        model = OpenAI(**self._server, temperature=0, max_tokens=8)
        return [model.invoke("Once upon a time"), "".join(model.stream("Once upon a time"))]

    def embeddings(self) -> Any:
        # Without the check LangChain sends texts; with it, ids of OpenAI's tokenizer, which it would have to download.
        model = OpenAIEmbeddings(**self._server, check_embedding_ctx_length=False)
        return {"documents": model.embed_documents(["a fox", "an owl"]), "query": model.embed_query("a fox")}

    def errors(self) -> Any:
        found = {}
        for name, change in {"model": {"model": "none"}, "temperature": {"temperature": 9}}.items():
            try:
                ChatOpenAI(**{**self._server, **change}, max_retries=0).invoke(CAPITAL)
            except (openai.NotFoundError, openai.BadRequestError) as error:  # or what LangChain derives of them
                found[name] = [error.status_code, error.param]
        return found


def _facts(message: BaseMessage) -> dict[str, Any]:
    assert isinstance(message, AIMessage)
    return {
        "text": message.content,
        "usage": message.usage_metadata,
        "finish_reason": message.response_metadata["finish_reason"],
        "model": message.response_metadata["model_name"],
    }


def _calls(message: BaseMessage) -> list[list[Any]]:
    assert isinstance(message, AIMessage)
    assert not message.invalid_tool_calls
    return [[call["name"], call["args"]] for call in message.tool_calls]


def main(url: str) -> None:
    asker = Asker(url)
    questions = [name for name in vars(Asker) if not name.startswith("_")]
    print(json.dumps({name: getattr(asker, name)() for name in questions}))


if __name__ == "__main__":
    main(sys.argv[1])
