"""Hostile sizes and depths: memory and time stay in proportion to the text."""

from __future__ import annotations

import json

import pytest

from dynamo.parsers.scanner import MAX_DEPTH
from dynamo.parsers.source import CALL_LIMIT

LONG = "x" * (CALL_LIMIT + 1000)


def pieces(text: str, size: int = 4096) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def test_arguments_beyond_the_limit_are_dropped_and_the_next_call_is_found(parse):
    text = (
        f'<tool_call>{{"name": "f", "arguments": {{"a": "{LONG}"}}}}</tool_call><tool_call>{{"name": "g"}}</tool_call>!'
    )
    answer = parse(pieces=pieces(text), tool_calls="hermes")
    assert [(name, len(arguments)) for name, arguments in answer.calls] == [("f", CALL_LIMIT), ("g", 2)]
    assert answer.content == "!"
    assert parse(text, tool_calls="hermes") == answer


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3_coder", f"<function=f><parameter=a>{LONG}</parameter></function>"),
        ("qwen3_coder", f"<function=get_weather><parameter=days>{LONG}</parameter></function>"),
        ("glm45", f"<tool_call>f<arg_key>a</arg_key><arg_value>{LONG}</arg_value></tool_call>"),
        ("harmony", f"<|message|><|end|><|start|>assistant to=functions.f<|message|>{LONG}<|call|>"),
    ],
)
def test_other_formats_cut_there_too(parse, name, text):
    answer = parse(pieces=pieces(text), tool_calls=name)
    assert [len(arguments) for _, arguments in answer.calls] == [CALL_LIMIT]
    assert answer.content == ""
    assert parse(text, tool_calls=name) == answer


def test_early_arguments_beyond_the_limit_are_cut(parse):
    text = f'<tool_call>{{"arguments": {{"a": "{LONG}"}}, "name": "f"}}</tool_call>'
    assert [len(arguments) for _, arguments in parse(pieces=pieces(text), tool_calls="hermes").calls] == [CALL_LIMIT]


def test_a_python_call_beyond_the_limit_is_content_as_far_as_it_is_held(parse):
    answer = parse(pieces=pieces(f"[f(a='{LONG}')]!"), tool_calls="pythonic")
    assert answer.calls == []
    assert len(answer.content) == CALL_LIMIT + len("]!")


def test_a_call_that_never_names_its_function_is_held_up_to_the_limit(parse):
    answer = parse(pieces=pieces(f'<tool_call>{{"a": "{LONG}", "b": 1}}</tool_call>?'), tool_calls="hermes")
    assert answer.content == f'{{"a": "{LONG}"'[:CALL_LIMIT] + "?"


@pytest.mark.parametrize("opener", ["[", '{"a":'])
def test_deep_values_break_off(parse, opener):
    text = '<tool_call>{"name": "f", "arguments": ' + opener * 100_000
    answer = parse(pieces=pieces(text), tool_calls="hermes")
    assert answer.calls == [("f", opener * MAX_DEPTH)]
    assert answer.content == ""


def test_deep_python_is_content(parse):
    text = "[f(a=" + "[" * 10_000
    assert parse(text, tool_calls="pythonic").content == text


@pytest.mark.parametrize("value", ["[" * 5000, "1" * 10_000, "-" * 10_000, "(" * 5000 + ")" * 5000, "'" * 9999])
def test_odd_values_are_strings_or_json(parse, value):
    text = f"<function=get_weather><parameter=days>{value}</parameter></function>"
    (call,) = parse(text, tool_calls="qwen3_coder").calls
    if value.startswith("1"):
        assert call[1] == f'{{"days": {value}}}'
    else:
        assert json.loads(call[1]) == {"days": value}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("hermes", "<tool_call>"),
        ("hermes", '<tool_call>{"'),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>'),
        ("mistral", "[TOOL_CALLS]["),
        ("qwen3_coder", "<function=a><parameter=b>"),
        ("glm45", "<tool_call>f<arg_key>"),
        ("deepseek_v3", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>"),
        ("kimi_k2", "<|tool_call_begin|>f<|tool_call_argument_begin|>{"),
        ("harmony", "<|channel|>analysis<|message|>"),
        ("pythonic", "<|python_start|>[f("),
    ],
)
def test_many_markers_take_time_in_proportion(parse, name, unit):
    """Quadratic work would run into the test's time limit: 50,000 characters of openings, and by character."""
    text = unit * (50_000 // len(unit))
    whole = parse(text, tool_calls=name)
    assert parse(pieces=text, tool_calls=name) == whole


def test_white_space_is_held_up_to_a_limit(parse):
    text = " " * 5000 + '<tool_call>{"name": "f"}</tool_call>'
    answer = parse(pieces=text, tool_calls="hermes")
    assert answer == parse(text, tool_calls="hermes")
    assert answer.content == " " * 5000
    thought = parse(" " * 5000 + "<think>a</think>b", reasoning="qwen3")
    assert thought == parse(pieces=" " * 5000 + "<think>a</think>b", reasoning="qwen3")
    assert (thought.reasoning, thought.content) == ("a", " " * 5000 + "b")


@pytest.mark.parametrize("header", ["<tool_call>" + "n" * 300, "<tool_call>f<arg_key>" + "k" * 300])
def test_a_long_name_is_none(parse, header):
    text = f"{header}</arg_key><arg_value>1</arg_value></tool_call>."
    answer = parse(text, tool_calls="glm45")
    assert answer == parse(pieces=text, tool_calls="glm45")
    assert all(len(name) < 256 for name, _ in answer.calls)
