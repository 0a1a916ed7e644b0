"""Records what vLLM's own parsers make of a corpus of model outputs; run it where vLLM is installed.

    python packages/backend-vllm/tests/parsers_vs_vllm/record.py [--check]

The corpus is a list of situations, written down in the words of each format. `recorded.json` gets every text and what
vLLM reads out of it, whole and token by token; `test_parsers_vs_vllm.py` compares our parsers with that. With
``--check`` nothing is written: the exit status says whether vLLM still answers so.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "recorded.json"
TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "where": {"type": "object"},
        },
    },
    "stop": {"type": "object", "properties": {}},
}
Call = tuple[str, dict[str, Any]]
ONE: Call = ("get_weather", {"city": "Oslo", "days": 3})
TWO: Call = ("get_weather", {"city": "Rome", "metric": True})
UNICODE: Call = ("get_weather", {"city": 'Tromsø 🌨 北京 "q" \\ \n x'})
NESTED: Call = ("get_weather", {"where": {"points": [{"lat": 59.9, "tags": ["a", {"b": None}]}], "deep": {"x": {}}}})
MARKUP: Call = ("get_weather", {"city": "</b> [1] {2} <x>"})
EMPTY: Call = ("stop", {})


def dumps(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def in_tags(before: str, after: str, *, arguments: str = "arguments", join: str = "\n") -> Callable[..., str]:
    def render(calls: list[Call], **options: Any) -> str:
        bodies = [dumps({"name": name, arguments: args}, **options) for name, args in calls]
        return join.join(f"{before}{body}{after}" for body in bodies)

    return render


def in_list(before: str, after: str) -> Callable[..., str]:
    def render(calls: list[Call], **options: Any) -> str:
        return before + dumps([{"name": name, "arguments": args} for name, args in calls], **options) + after

    return render


def pythonic(calls: list[Call], **_options: Any) -> str:
    def written(call: Call) -> str:
        return f"{call[0]}({', '.join(f'{key}={value!r}' for key, value in call[1].items())})"

    return "[" + ", ".join(map(written, calls)) + "]"


def plain(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


def qwen3_coder(calls: list[Call], **_options: Any) -> str:
    def written(call: Call) -> str:
        parameters = "".join(f"<parameter={key}>\n{plain(value)}\n</parameter>\n" for key, value in call[1].items())
        return f"<tool_call>\n<function={call[0]}>\n{parameters}</function>\n</tool_call>"

    return "\n".join(map(written, calls))


def glm45(calls: list[Call], **_options: Any) -> str:
    def written(call: Call) -> str:
        pairs = "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>{plain(value)}</arg_value>\n" for key, value in call[1].items()
        )
        return f"<tool_call>{call[0]}\n{pairs}</tool_call>"

    return "\n".join(map(written, calls))


def in_section(begin: str, end: str, render_one: Callable[[int, str, str], str]) -> Callable[..., str]:
    def render(calls: list[Call], **options: Any) -> str:
        written = [render_one(index, name, dumps(args, **options)) for index, (name, args) in enumerate(calls)]
        return begin + "".join(written) + end

    return render


def deepseek_v3(_index: int, name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


def deepseek_v31(_index: int, name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


def kimi_k2(index: int, name: str, arguments: str) -> str:
    begin, middle, end = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
    return f"{begin}functions.{name}:{index}{middle}{arguments}{end}"


def mistral(calls: list[Call], **options: Any) -> str:
    """As since tokenizer v11; vLLM reads the older list with Mistral's own tokenizer only."""
    return "".join(f"[TOOL_CALLS]{name}{dumps(args, **options)}" for name, args in calls)


DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
#: Our name -> vLLM's name, how calls are written.
FORMATS: dict[str, tuple[str, Callable[..., str]]] = {
    "hermes": ("hermes", in_tags("<tool_call>\n", "\n</tool_call>")),
    "llama3_json": ("llama3_json", in_tags("", "", arguments="parameters", join="; ")),
    "mistral": ("mistral", mistral),
    "pythonic": ("pythonic", pythonic),
    "qwen3_coder": ("qwen3_coder", qwen3_coder),
    "deepseek_v3": ("deepseek_v3", in_section(*DEEPSEEK, deepseek_v3)),
    "deepseek_v3_1": ("deepseek_v31", in_section(*DEEPSEEK, deepseek_v31)),
    "kimi_k2": ("kimi_k2", in_section("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", kimi_k2)),
    "glm45": ("glm45", glm45),
    "jamba": ("jamba", in_list("<tool_calls>", "</tool_calls>")),
    "phi4": ("phi4_mini_json", in_list("functools", "")),
    "granite": ("granite", in_list("<|tool_call|>", "")),
}
#: Our name -> vLLM's name, start, end.
REASONING = {
    "qwen3": ("qwen3", "<think>", "</think>"),
    "deepseek_r1": ("deepseek_r1", "<think>", "</think>"),
    "glm45": ("glm45", "<think>", "</think>"),
    "granite": ("granite", "Here is my thought process:", "Here is my response:"),
    "kimi_k2": ("kimi_k2", "<think>", "</think>"),
    "mistral": ("mistral", "[THINK]", "[/THINK]"),
    "seed_oss": ("seed_oss", "<seed:think>", "</seed:think>"),
}
SPECIAL = [
    *("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<tool_calls>", "</tool_calls>", "<tool_call>", "</tool_call>"),
    *("<|tool_call|>", "<think>", "</think>", "[THINK]", "[/THINK]", "<seed:think>", "</seed:think>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    *("<｜tool▁sep｜>", *DEEPSEEK, "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    *("<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_call_argument_begin|>", "<|eom_id|>", "<|im_end|>"),
]


def tool_cases(render: Callable[..., str]) -> dict[str, str]:
    """Situation -> the text of a model that got into it."""
    one = render([ONE])
    return {
        "no call": "It is cold in Oslo. {1} [2] <3>",
        "one call": one,
        "text before": f"I will look.\n{one}",
        "text behind": f"{one}\nDone.",
        "two calls": render([ONE, TWO]),
        "no arguments": render([EMPTY]),
        "unicode and escapes": render([UNICODE]),
        "nested": render([NESTED]),
        "markup in a value": render([MARKUP]),
        "indented": render([ONE], indent=2),
        "unknown function": render([("fly", {"to": "Oslo"})]),
        "cut within the arguments": one[: one.index("Oslo") + 2],
        "cut within the name": one[: one.index("get_weather") + 4],
        "second call cut": render([ONE, TWO])[: render([ONE, TWO]).index("Rome") + 2],
        "wrong value": one.replace("3", "3,,", 1),
    }


def reasoning_cases(start: str, end: str) -> dict[str, str]:
    """Situation -> the text of a model that got into it."""
    return {
        "reasoning and answer": f"{start}I add.{end}It is 13.",
        "with line ends": f"{start}\nI add.\n{end}\n\nIt is 13.",
        "no start": f"I add.{end}It is 13.",
        "no end": f"{start}I add and add",
        "neither": "It is 13.",
        "empty": f"{start}{end}It is 13.",
        "no answer": f"{start}I add.{end}",
        "unicode": f"{start}Tromsø 🌨 北京{end}é",
        "twice": f"{start}a{end}b{start}c{end}d",
        "text before": f"Well. {start}I add.{end}It is 13.",
    }


class Vllm:
    """vLLM's parsers on the demo model's tokenizer, to which the markers of all formats are added."""

    def __init__(self) -> None:
        from transformers import PreTrainedTokenizerFast
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.reasoning import ReasoningParserManager
        from vllm.tool_parsers import ToolParserManager

        from dynamo.reference import demo_model_directory

        self._reasoning, self._tools = ReasoningParserManager, ToolParserManager
        self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(demo_model_directory() / "tokenizer.json"))
        self._tokenizer.add_tokens(SPECIAL, special_tokens=True)
        self._end = self._tokenizer.convert_tokens_to_ids("<|im_end|>")
        tools = [
            {"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in TOOLS.items()
        ]
        self._request = ChatCompletionRequest(
            model="m", messages=[{"role": "user", "content": "x"}], tools=tools, skip_special_tokens=False
        )

    def tool_calls(self, name: str, text: str) -> dict[str, Any]:
        """What the tool-call parser reads, from the whole text."""
        made = self._tool_parser(name).extract_tool_calls(text, self._request)
        calls = [[call.function.name, call.function.arguments] for call in made.tool_calls]
        return {"content": made.content or "", "calls": calls}

    def streamed_tool_calls(self, name: str, text: str) -> dict[str, Any]:
        """The same token by token."""
        parser = self._tool_parser(name)
        content, calls, delta = "", [], None
        for step in self._steps(text):
            delta = parser.extract_tool_calls_streaming(*step, self._request)
            if delta is None:
                continue
            content += delta.content or ""
            for call in delta.tool_calls or []:
                while len(calls) <= call.index:
                    calls.append(["", ""])
                function = call.function
                if function is not None:
                    calls[call.index][0] += function.name or ""
                    calls[call.index][1] += function.arguments or ""
        if calls and delta is not None and delta.tool_calls:
            # What vLLM's server does with the last piece.
            calls[-1][1] += parser.get_remaining_unstreamed_args()
        return {"content": content, "calls": calls}

    def reasoning(self, name: str, text: str) -> dict[str, Any]:
        """What the reasoning parser reads, from the whole text."""
        parser = self._reasoning.get_reasoning_parser(name)(self._tokenizer)
        reasoning, content = parser.extract_reasoning(text, self._request)
        return {"reasoning": reasoning or "", "content": content or ""}

    def streamed_reasoning(self, name: str, text: str) -> dict[str, Any]:
        """The same token by token; vLLM stops asking the parser at the end of the reasoning."""
        parser = self._reasoning.get_reasoning_parser(name)(self._tokenizer)
        parts = {"reasoning": "", "content": ""}
        ended = False
        for step in self._steps(text):
            if ended:
                parts["content"] += step[2]
                continue
            delta = parser.extract_reasoning_streaming(*step)
            parts["reasoning"] += (delta and delta.reasoning) or ""
            parts["content"] += (delta and delta.content) or ""
            ended = parser.is_reasoning_end_streaming(step[4], step[5])
        return parts

    def _tool_parser(self, name: str) -> Any:
        return self._tools.get_tool_parser(name)(self._tokenizer, self._request.tools)

    def _steps(self, text: str) -> list[tuple[Any, ...]]:
        """``(text before, text now, delta, ids before, ids now, delta ids)`` for each piece that is whole characters."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        steps, before, seen = [], "", 0
        for end in range(1, len(ids) + 1):
            now = self._tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if now.endswith("\ufffd"):
                continue
            steps.append((before, now, now[len(before) :], ids[:seen], ids[:end], ids[seen:end]))
            before, seen = now, end
        # The end-of-sequence token, which has no text.
        steps.append((before, before, "", ids, [*ids, self._end], [self._end]))
        return steps


def attempt(function: Callable[[str, str], dict[str, Any]], name: str, text: str) -> dict[str, Any]:
    try:
        return function(name, text)
    except Exception as error:
        return {"raises": type(error).__name__}


def record() -> dict[str, Any]:
    vllm = Vllm()
    found: dict[str, Any] = {"tools": TOOLS, "tool_calls": {}, "reasoning": {}}
    for ours, (name, render) in FORMATS.items():
        found["tool_calls"][ours] = {
            case: {
                "text": text,
                "whole": attempt(vllm.tool_calls, name, text),
                "streamed": attempt(vllm.streamed_tool_calls, name, text),
            }
            for case, text in tool_cases(render).items()
        }
    for ours, (name, start, end) in REASONING.items():
        found["reasoning"][ours] = {
            case: {
                "text": text,
                "whole": attempt(vllm.reasoning, name, text),
                "streamed": attempt(vllm.streamed_reasoning, name, text),
            }
            for case, text in reasoning_cases(start, end).items()
        }
    return found


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    recorded = record()
    if "--check" in sys.argv:
        sys.exit(recorded != json.loads(FILE.read_text()))
    FILE.write_text(json.dumps(recorded, ensure_ascii=False, indent=1) + "\n")
