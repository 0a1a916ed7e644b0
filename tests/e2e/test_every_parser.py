"""Every format of tool calls and reasoning, whole and streamed, through real processes: echo workers with a script.

What the demo model writes by itself is tested elsewhere; these are the formats of other models. `tests/parsers` of the
core package tests what parsers make of any text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from dynamo.plugins import plugins
from tests.e2e.processes import Deployment, Frontend, deployment, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
#: Format -> a call of `get_weather` for Oslo, as models write it.
CALLS = {
    "hermes": f"<tool_call>\n{CALL}\n</tool_call>",
    "llama3_json": '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
    "mistral": f"[TOOL_CALLS][{CALL}]",
    "pythonic": "[get_weather(city='Oslo')]",
    "qwen3_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        '```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    ),
    "deepseek_v3_1": (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Oslo"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>'
    ),
    "glm45": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
    "harmony": (
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>" + '{"city": "Oslo"}<|call|>'
    ),
    "nemotron_deci": f"<TOOLCALL>[{CALL}]</TOOLCALL>",
    "jamba": f"<tool_calls>[{CALL}]</tool_calls>",
    "phi4": f"functools[{CALL}]",
    "granite": f"<|tool_call|>[{CALL}]",
}
THINK = "<think>Hm.</think>Hello"
#: Format -> the reasoning "Hm." and the answer "Hello".
REASONING = {
    "basic": THINK,
    "qwen3": THINK,
    "glm45": THINK,
    "deepseek_v3": THINK,
    "deepseek_r1": "Hm.</think>Hello",
    "gpt_oss": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>",
    "granite": "Here is my thought process:Hm.Here is my response:Hello",
    "kimi_k2": "◁think▷Hm.◁/think▷Hello",
    "mistral": "[THINK]Hm.[/THINK]Hello",
    "seed_oss": "<seed:think>Hm.</seed:think>Hello",
}
#: A worker has one parser of each kind: they are paired as they come.
PAIRS = [(call, list(REASONING)[number] if number < len(REASONING) else "") for number, call in enumerate(CALLS)]


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """One worker per pair, whose model is named like its tool-call format."""
    directory = tmp_path_factory.mktemp("parsers")
    with deployment(directory) as processes:
        made = processes.frontend()
        for number in range(0, len(PAIRS), 4):  # a few at a time: each start is a second of work
            for pair in PAIRS[number : number + 4]:
                start_worker(processes, *pair)
            models = {call for call, _ in PAIRS[: number + 4]}
            wait_until(lambda models=models: models <= set(made.models()), "the models", *processes.processes)
        yield made


def start_worker(processes: Deployment, call: str, reasoning: str) -> None:
    script = processes.directory / f"{call}.jsonl"
    thought = "</think>" if reasoning == "deepseek_r1" else ""  # that format's texts begin within the reasoning
    lines = [{"match": "weather", "text": thought + CALLS[call]}, {"text": REASONING.get(reasoning, "Hello")}]
    script.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    parsers = ("--dyn-tool-call-parser", call, "--dyn-reasoning-parser", reasoning)
    processes.worker("--served-model-name", call, *parsers, "--script", str(script))


def whole(frontend: Frontend, model: str, text: str, **fields) -> tuple[dict, str]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 500, **fields}
    response = httpx.post(f"{frontend.url}/v1/chat/completions", json=body, timeout=30)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["message"], choice["finish_reason"]


def streamed(frontend: Frontend, model: str, text: str, **fields) -> tuple[dict, str]:
    """The message that a client puts together."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 500,
        "stream": True,
        **fields,
    }
    message: dict = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = ""
    with httpx.stream("POST", f"{frontend.url}/v1/chat/completions", json=body, timeout=30) as response:
        for line in response.iter_lines():
            if not line or line == "data: [DONE]":
                continue
            choice = json.loads(line.removeprefix("data: "))["choices"][0]
            reason = choice["finish_reason"] or reason
            message["content"] += choice["delta"].get("content") or ""
            message["reasoning_content"] += choice["delta"].get("reasoning_content") or ""
            for call in choice["delta"].get("tool_calls", ()):
                if "id" in call:
                    message["tool_calls"].append({"function": {"name": call["function"]["name"], "arguments": ""}})
                message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message, reason


@pytest.mark.parametrize("ask", [whole, streamed])
@pytest.mark.parametrize("name", CALLS)
def test_tool_calls(frontend, name, ask):
    message, reason = ask(frontend, name, "the weather?", tools=[TOOL])
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    assert ((message["content"] or "").strip(), reason) == ("", "tool_calls")


@pytest.mark.parametrize("ask", [whole, streamed])
@pytest.mark.parametrize(("model", "name"), [pair for pair in PAIRS if pair[1]])
def test_reasoning(frontend, model, name, ask):
    message, reason = ask(frontend, model, "hello?")
    assert (message["reasoning_content"], message["content"], reason) == ("Hm.", "Hello", "stop")


@pytest.mark.parametrize("kind", ["tool_call_parsers", "reasoning_parsers"])
def test_every_format_is_tested(kind):
    """By one of its names at least; how calls are forced is tested with the engines that can force them."""
    tested = {"tool_call_parsers": CALLS, "reasoning_parsers": REASONING}[kind]
    registry = getattr(plugins(), kind)
    assert {registry.get(name) for name in registry.names()} - {registry.get(name) for name in tested} <= {
        plugins().tool_call_parsers.get("guided_json")
    }
