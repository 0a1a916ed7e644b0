"""Our parsers beside vLLM's, case by case; what differs is listed here and explained in parsers-compared.md.

`recorded.json` has vLLM's answers (see record.py), so this runs without vLLM; the last test asks vLLM again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dynamo.parsers.output import make_output_parser
from dynamo.plugins.loading import plugins
from dynamo.protocols.parsing import ReasoningOptions, ToolCallOptions, ToolFunction

HERE = Path(__file__).parent
PAGE = HERE.parents[3] / "docs" / "explanation" / "parsers-compared.md"
RECORDED: dict[str, Any] = json.loads((HERE / "recorded.json").read_text("utf-8"))
TOOLS = tuple(ToolFunction(name, schema) for name, schema in RECORDED["tools"].items())


class Difference(NamedTuple):
    """Where vLLM answers differently, and why ours stays; `reason` is a heading's anchor in the page."""

    reason: str
    kind: str
    formats: frozenset[str]
    cases: frozenset[str]
    modes: frozenset[str]


def row(reason: str, kind: str, formats: str, cases: str, modes: str = "whole, streamed") -> Difference:
    parts = (frozenset(part.strip() for part in text.split(",")) for text in (formats, cases, modes))
    return Difference(reason, kind, *parts)


#: The first row that fits explains a difference.
DIFFERENCES = [
    row("jamba-streamed", "tool_calls", "jamba", "*", "streamed"),
    row("phi-4-streamed", "tool_calls", "phi4", "*", "streamed"),
    row("mistral-streamed", "tool_calls", "mistral", "*", "streamed"),
    row("text-behind-a-call", "tool_calls", "*", "text behind"),
    row("a-call-that-breaks-off-before-its-arguments", "tool_calls", "*", "cut within the name"),
    row("python-calls-come-whole", "tool_calls", "pythonic", "cut within the arguments, second call cut, wrong value"),
    row(
        "a-call-that-breaks-off-within-its-arguments",
        "tool_calls",
        "hermes, llama3_json, qwen3_coder, deepseek_v3, deepseek_v3_1, glm45, jamba, phi4",
        "cut within the arguments, second call cut, wrong value",
        "whole",
    ),
    row("wrong-json-as-it-comes", "tool_calls", "hermes", "wrong value", "streamed"),
    row(
        "wrong-json-as-it-comes",
        "tool_calls",
        "llama3_json",
        "cut within the arguments, second call cut, wrong value",
        "streamed",
    ),
    row("brackets-within-phi-4-calls", "tool_calls", "phi4", "nested, markup in a value, text before", "whole"),
    row("deepseek-arguments-on-several-lines", "tool_calls", "deepseek_v3, deepseek_v3_1", "indented"),
    row("llama-calls-behind-text", "tool_calls", "llama3_json", "text before", "whole"),
    row("calls-without-arguments", "tool_calls", "llama3_json", "no arguments", "streamed"),
    row("functions-that-were-not-offered", "tool_calls", "glm45", "unknown function"),
    row("python-numbers", "tool_calls", "pythonic", "nested", "streamed"),
    row("granite-streamed", "reasoning", "granite", "*", "streamed"),
    row("granite-whole", "reasoning", "granite", "no end, text before", "whole"),
    row("what-the-prompt-opened", "reasoning", "qwen3, glm45, kimi_k2", "no start, neither"),
    row("reasoning-twice", "reasoning", "*", "twice"),
    row("text-before-reasoning", "reasoning", "qwen3, glm45, kimi_k2, deepseek_r1", "text before"),
]

CASES = [
    (kind, name, case, mode)
    for kind in ("tool_calls", "reasoning")
    for name, cases in RECORDED[kind].items()
    for case in cases
    for mode in ("whole", "streamed")
]


def ours(kind: str, name: str, text: str, size: int, prompt_tail: str = "") -> dict[str, Any]:
    """What our parser reads out of `text` that comes in pieces of `size` characters."""
    chosen = {"tool_calls": name} if kind == "tool_calls" else {"reasoning": name}
    parser = make_output_parser(
        plugins(),
        tool_call_options=ToolCallOptions(tools=TOOLS),
        reasoning_options=ReasoningOptions(prompt_tail=prompt_tail),
        **chosen,
    )
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    content, reasoning, calls = "", "", []
    for delta in [*map(parser.feed, pieces), parser.finish()]:
        content += delta.content
        reasoning += delta.reasoning
        for call in delta.tool_calls:
            while len(calls) <= call.index:
                calls.append(["", ""])
            calls[call.index][0] += call.name or ""
            calls[call.index][1] += call.arguments
    answer: dict[str, Any] = {"content": content}
    return {**answer, "calls": calls} if kind == "tool_calls" else {**answer, "reasoning": reasoning}


def normal(answer: dict[str, Any]) -> dict[str, Any]:
    """White space at the ends of texts and within arguments that are JSON does not count."""
    texts = {key: value.strip() for key, value in answer.items() if isinstance(value, str)}
    calls = [(name, _loaded(arguments)) for name, arguments in answer.get("calls", [])]
    return {**texts, "calls": calls}


def _loaded(arguments: str) -> Any:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return f"no JSON: {arguments}"


def explanation(kind: str, name: str, case: str, mode: str) -> Difference | None:
    for each in DIFFERENCES:
        fits = each.formats & {name, "*"} and each.cases & {case, "*"} and mode in each.modes
        if each.kind == kind and fits:
            return each
    return None


def differs(kind: str, name: str, case: str, mode: str) -> bool:
    entry = RECORDED[kind][name][case]
    return normal(entry[mode]) != normal(ours(kind, name, entry["text"], len(entry["text"])))


@pytest.mark.parametrize(("kind", "name", "case", "mode"), CASES, ids="-".join)
def test_ours_is_vllms_or_the_difference_is_explained(kind, name, case, mode):
    if differs(kind, name, case, mode):
        entry = RECORDED[kind][name][case]
        assert explanation(kind, name, case, mode), (
            entry["text"],
            entry[mode],
            ours(kind, name, entry["text"], len(entry["text"])),
        )


@pytest.mark.parametrize("size", [1, 3, 7])
def test_ours_does_not_depend_on_the_pieces(size):
    for kind in ("tool_calls", "reasoning"):
        for name, cases in RECORDED[kind].items():
            for entry in cases.values():
                text = entry["text"]
                assert ours(kind, name, text, size) == ours(kind, name, text, len(text))


@pytest.mark.parametrize("name", ["qwen3", "glm45", "kimi_k2"])
@pytest.mark.parametrize("case", ["no start", "neither"])
def test_behind_a_prompt_that_opened_the_reasoning_ours_is_vllms(name, case):
    entry = RECORDED["reasoning"][name][case]
    answer = ours("reasoning", name, entry["text"], 5, prompt_tail="<|im_start|>assistant\n<think>\n")
    assert normal(answer) == normal(entry["whole"])


def test_every_listed_difference_exists_and_is_on_the_page():
    found = Counter(
        explained.reason for case in CASES if differs(*case) and (explained := explanation(*case)) is not None
    )
    assert set(found) == {each.reason for each in DIFFERENCES}
    headings = [line[4:] for line in PAGE.read_text("utf-8").splitlines() if line.startswith("### ")]
    assert {heading.lower().replace(" ", "-").replace("'", "") for heading in headings} == set(found)


def test_enough_cases_per_format():
    for kind in ("tool_calls", "reasoning"):
        assert all(len(cases) >= 8 for cases in RECORDED[kind].values())
    assert len(RECORDED["tool_calls"]) + len(RECORDED["reasoning"]) >= 19


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_vllm_still_answers_so():
    check = subprocess.run([sys.executable, HERE / "record.py", "--check"], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr[-2000:]
