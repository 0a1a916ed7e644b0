"""The chain of parsers, the names that lead to them, and calls forced by a schema."""

from __future__ import annotations

import pytest

from dynamo.errors import PluginNotFound
from dynamo.parsers import OutputParser, make_output_parser
from dynamo.parsers.guided import GuidedCalls
from dynamo.plugins import plugins
from dynamo.protocols.parsing import ParsedDelta, ReasoningOptions, ToolCallOptions, new_tool_call_id

TOOL_CALL_NAMES = [
    "hermes",
    "qwen25",
    "qwen3",
    "llama3_json",
    "llama3",
    "llama4_json",
    "mistral",
    "pythonic",
    "llama4_pythonic",
    "qwen3_coder",
    "qwen3_xml",
    "nemotron_nano",
    "deepseek_v3",
    "deepseek_v3_1",
    "deepseek_v31",
    "kimi_k2",
    "glm45",
    "glm47",
    "harmony",
    "gpt_oss",
    "openai",
    "nemotron_deci",
    "jamba",
    "phi4",
    "granite",
]
REASONING_NAMES = [
    "basic",
    "deepseek_r1",
    "deepseek-r1",
    "qwen3",
    "gpt_oss",
    "gpt-oss",
    "granite",
    "glm45",
    "kimi_k2",
    "mistral",
    "step3",
    "deepseek_v3_1",
]


def test_without_parsers_text_is_content():
    parser = OutputParser()
    assert parser.feed("<think>a") == ParsedDelta("<think>a")
    assert parser.finish() == ParsedDelta()
    assert (parser.made_tool_calls, parser.needs_special_tokens) == (False, False)


@pytest.mark.parametrize("name", TOOL_CALL_NAMES)
def test_tool_call_parsers_by_name(name):
    parser = make_output_parser(plugins(), tool_calls=name)
    assert parser.feed("Hi").content + parser.finish().content == "Hi"


@pytest.mark.parametrize("name", REASONING_NAMES)
def test_reasoning_parsers_by_name(name):
    parser = make_output_parser(plugins(), reasoning=name)
    first, last = parser.feed("Hi"), parser.finish()
    assert first.content + last.content + first.reasoning + last.reasoning == "Hi"


def test_every_registered_parser_of_ours_can_be_made():
    for entry in plugins().tool_call_parsers:
        made = plugins().tool_call_parsers.get(entry.name)(ToolCallOptions())
        assert isinstance(made.needs_special_tokens, bool), entry.name
    for entry in plugins().reasoning_parsers:
        made = plugins().reasoning_parsers.get(entry.name)(ReasoningOptions())
        assert isinstance(made.needs_special_tokens, bool), entry.name


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(PluginNotFound, match="no tool-call parser named 'hermez'") as raised:
        make_output_parser(plugins(), tool_calls="hermez")
    assert "hermes" in (raised.value.hint or "")
    with pytest.raises(PluginNotFound, match="no reasoning parser named 'think'"):
        make_output_parser(plugins(), reasoning="think")


@pytest.mark.parametrize(
    ("reasoning", "tool_calls", "needed"),
    [
        ("qwen3", "", False),
        ("gpt_oss", "", True),
        ("qwen3", "hermes", True),
        ("", "guided_json", False),
        ("kimi_k2", "", True),
    ],
)
def test_special_tokens_are_kept_for_whom_needs_them(reasoning, tool_calls, needed):
    assert make_output_parser(plugins(), reasoning=reasoning, tool_calls=tool_calls).needs_special_tokens is needed


def test_one_piece_may_bring_reasoning_content_and_a_call():
    parser = make_output_parser(plugins(), reasoning="qwen3", tool_calls="hermes")
    delta = parser.feed('<think>a</think>b<tool_call>{"name": "f", "arguments": {')
    assert (delta.reasoning, delta.content) == ("a", "b")
    assert [(call.index, call.name, call.arguments) for call in delta.tool_calls] == [(0, "f", "{")]
    assert parser.made_tool_calls


def test_what_the_reasoning_parser_held_reaches_the_tool_call_parser_at_the_end():
    parser = make_output_parser(plugins(), reasoning="qwen3", tool_calls="hermes")
    assert parser.feed("<thi") == ParsedDelta()
    assert parser.finish() == ParsedDelta("<thi")


def test_ids_are_random_and_of_openai_form():
    first, second = new_tool_call_id(), new_tool_call_id()
    assert first != second
    assert first.startswith("call_")
    assert len(first) == 29
    assert set(first[5:]) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("choice", "text", "content", "calls"),
    [
        ("required", '[{"name": "f", "parameters": {"a": 1}}, {"name": "g"}]', "", [("f", '{"a": 1}'), ("g", "{}")]),
        ("required", ' {"name": "f", "arguments": {}}', "", [("f", "{}")]),
        ("required", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ("named", '\n{"name": "x", "a": "}"}', "", [("get_weather", '{"name": "x", "a": "}"}')]),
        ("named", '{"a": "b', "", [("get_weather", '{"a": "b')]),
        ("named", "I cannot.", "I cannot.", []),
    ],
)
def test_forced_calls(choice, text, content, calls):
    for pieces in ([text], text):
        parser = GuidedCalls(ToolCallOptions(tool_choice=choice, named_function="get_weather"))
        deltas = [*map(parser.feed, pieces), parser.finish()]
        made = [call for delta in deltas for call in delta.tool_calls]
        names = [call.name for call in made if call.name]
        arguments = ["".join(c.arguments for c in made if c.index == index) for index in range(len(names))]
        assert list(zip(names, arguments, strict=True)) == calls
        assert "".join(delta.content for delta in deltas) == content


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ('{"a": "</think>"}', "", '{"a": "</think>"}'),
        (" \n[1]", "", " \n[1]"),
        ("I think: {}.</think>{}", "I think: {}.", "{}"),
        ("\nHm", "\nHm", ""),
        (" \n", " \n", ""),
        ("", "", ""),
        (" " * 5000 + "{}", " " * 5000 + "{}", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_reasoning_before_a_forced_answer_is_there_or_not(text, reasoning, content, size):
    parser = make_output_parser(plugins(), reasoning="deepseek_r1", guided=True)
    deltas = [parser.feed(text[start : start + size]) for start in range(0, len(text), size)] + [parser.finish()]
    assert "".join(delta.reasoning for delta in deltas) == reasoning
    assert "".join(delta.content for delta in deltas) == content


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("Oslo", "", "Oslo"),
        ("Which one? The first.</think>Oslo", "Which one? The first.", "Oslo"),
        ("<think>\nWhich?</think>Oslo", "Which?", "Oslo"),
        ("", "", ""),
    ],
)
def test_a_forced_answer_in_any_text_is_no_reasoning(text, reasoning, content, size):
    parser = make_output_parser(plugins(), reasoning="deepseek_r1", guided=True, guided_text=True)
    deltas = [parser.feed(text[start : start + size]) for start in range(0, len(text), size)] + [parser.finish()]
    assert "".join(delta.reasoning for delta in deltas).strip() == reasoning
    assert "".join(delta.content for delta in deltas) == content
