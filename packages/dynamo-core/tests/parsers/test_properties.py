"""Any text, cut anywhere: the same result as in one piece, no exception, and no marker in the content."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamo.parsers.deepseek import DeepSeekV3
from dynamo.parsers.glm45 import Glm45
from dynamo.parsers.harmony import Harmony
from dynamo.parsers.json_blocks import Granite, Hermes, Jamba, NemotronDeci, Phi4
from dynamo.parsers.kimi import KimiK2
from dynamo.parsers.llama import Llama3Json
from dynamo.parsers.mistral import Mistral
from dynamo.parsers.pythonic import Pythonic
from dynamo.parsers.qwen3_coder import Qwen3Coder

JSON_PARTS = (
    '{"name": "get_weather", "arguments": ',
    '{"city": "Os}lo"}',
    "}",
    "{",
    "[",
    "]",
    '"',
    "\\",
    ",",
    '"name": "f"',
)
PYTHON_PARTS = ("[get_weather(", "city='Oslo'", ", ", "get_time()", ")", "]", "'", "[", "(", "1")
TEXT_PARTS = ("Hello", " ", "\n", "é😀", "<", "a < b", "get_weather", "12")
#: Registered name, its class, what its calls are made of, and a well-formed call.
FORMATS: dict[str, tuple[type[Any], tuple[str, ...], str]] = {
    "hermes": (Hermes, JSON_PARTS, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'),
    "nemotron_deci": (NemotronDeci, JSON_PARTS, '<TOOLCALL>[{"name": "f", "arguments": {"a": [1, "]"]}}]</TOOLCALL>'),
    "jamba": (Jamba, JSON_PARTS, '<tool_calls>[{"name": "f", "arguments": {"a": {}}}]</tool_calls>'),
    "phi4": (Phi4, JSON_PARTS, 'functools[{"name": "f", "arguments": {}}, {"name": "g"}]'),
    "granite": (Granite, JSON_PARTS, '<|tool_call|>[{"name": "f", "arguments": {"a": "<"}}]'),
    "llama3_json": (Llama3Json, JSON_PARTS, '<|python_tag|>{"name": "f", "parameters": {"a": "\\""}}; {"name": "g"}'),
    "mistral": (
        Mistral,
        (*JSON_PARTS, "[CALL_ID]", "[ARGS]", "123456789", "f"),
        '[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}[TOOL_CALLS] [{"name": "h", "arguments": {}}]',
    ),
    "pythonic": (Pythonic, PYTHON_PARTS, "<|python_start|>[get_weather(city='O\\'s', days=[1]), f()]<|python_end|>"),
    "qwen3_coder": (
        Qwen3Coder,
        ("get_weather>", "city>\n", "days>", "\n", "</", "null"),
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nO\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
            "</function>\n</tool_call>"
        ),
    ),
    "deepseek_v3": (
        DeepSeekV3,
        (*JSON_PARTS, "```json\n", "```", "function"),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>"
            '<｜tool▁call▁begin｜>g<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
        ),
    ),
    "kimi_k2": (
        KimiK2,
        (*JSON_PARTS, "functions.f:0"),
        (
            '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}'
            "<|tool_call_end|><|tool_calls_section_end|>"
        ),
    ),
    "glm45": (
        Glm45,
        ("get_weather", "city", "days", "\n", "3", "</"),
        (
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>O</arg_value>\n<arg_key>days</arg_key>\n"
            "<arg_value>3</arg_value>\n</tool_call>"
        ),
    ),
    "harmony": (
        Harmony,
        ("analysis", "final", "commentary", " to=functions.f ", "assistant", " to=python"),
        (
            "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json"
            '<|message|>{"a": 1}<|call|><|start|>assistant<|channel|>final<|message|>Yes'
        ),
    ),
}
REASONERS = {
    "qwen3": ("<think>", "</think>"),
    "deepseek_r1": ("<think>", "</think>"),
    "granite": ("Here is my thought process:", "Here is my response:"),
    "kimi_k2": ("<think>", "◁/think▷", "</think>", "<tool_call>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "gpt_oss": ("<|channel|>analysis<|message|>", "<|end|>", "<|start|>", "<|channel|>", "final", "<|message|>"),
}
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[begin:end] for begin, end in itertools.pairwise(edges)]


def texts(parts: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(parts), max_size=14).map("".join)


PLACES = st.lists(st.integers(0, 10_000), max_size=30)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@quick
def test_anything_made_of_the_formats_parts(parse, name, data):
    cls, parts, call = FORMATS[name]
    text = data.draw(texts((*TEXT_PARTS, *parts, *parts, *cls.markers.texts, call)))
    whole = parse(text, tool_calls=name)
    assert parse(pieces=cut(text, data.draw(PLACES)), tool_calls=name) == whole
    assert parse(pieces=text, tool_calls=name) == whole
    # `text` holds no marker that removing another one would complete.
    assert [marker for marker in cls.markers.texts if marker in whole.content + whole.reasoning] == []


@pytest.mark.parametrize("name", FORMATS)
@given(before=texts(TEXT_PARTS), after=texts(TEXT_PARTS), data=st.data())
@quick
def test_a_call_among_text_cut_or_not_is_found(parse, name, before, after, data):
    cls, _, call = FORMATS[name]
    text = before + call + after
    whole = parse(text, tool_calls=name)
    assert parse(pieces=cut(text, data.draw(PLACES)), tool_calls=name) == whole
    assert whole.calls
    assert whole.content.startswith(before.rstrip())
    assert whole.content.rstrip().endswith(after.strip()) or name in ("llama3_json", "harmony")
    end = data.draw(st.integers(0, len(text)))
    end -= cls.markers.held(text[:end])  # half a marker is text when nothing follows
    truncated = parse(text[:end], tool_calls=name)
    assert parse(pieces=cut(text[:end], data.draw(PLACES)), tool_calls=name) == truncated
    assert len(truncated.calls) <= len(whole.calls)
    for cut_off, complete in zip(truncated.calls, whole.calls, strict=False):
        assert cut_off[0] == complete[0]
        assert complete[1].startswith(cut_off[1])


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text(max_size=60), places=PLACES)
@quick
def test_text_without_calls_is_content_as_it_is(parse, name, text, places):
    answer = parse(pieces=cut(text, places), tool_calls=name)
    assert (answer.content, answer.calls) == (text, [])


@pytest.mark.parametrize("name", REASONERS)
@given(data=st.data())
@quick
def test_reasoning_does_not_depend_on_the_pieces(parse, name, data):
    text = data.draw(texts((*TEXT_PARTS, *REASONERS[name], *REASONERS[name])))
    for caller in ("", "hermes"):
        whole = parse(text, reasoning=name, tool_calls=caller)
        assert parse(pieces=cut(text, data.draw(PLACES)), reasoning=name, tool_calls=caller) == whole
        assert parse(pieces=text, reasoning=name, tool_calls=caller) == whole
