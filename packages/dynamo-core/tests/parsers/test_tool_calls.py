"""Literal model outputs, format by format: what a client gets, however the text is cut."""

from __future__ import annotations

import json

import pytest

from dynamo.parsers.json_blocks import Hermes
from dynamo.parsers.qwen3_coder import Qwen3Coder
from dynamo.protocols.parsing import ToolCallOptions

OSLO = ("get_weather", '{"city": "Oslo"}')
DS_CALLS, DS_CALL, DS_SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
DS_END, DS_CALLS_END = "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"
KIMI, KIMI_CALL, KIMI_ARGS = "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"
KIMI_CALL_END, KIMI_END = "<|tool_call_end|>", "<|tool_calls_section_end|>"

#: (parser, text, content, calls)
CASES = [
    ("hermes", "Hello, world!", "Hello, world!", []),
    ("hermes", " \n", " \n", []),
    ("hermes", "a < b, <tool and <tool_cal", "a < b, <tool and <tool_cal", []),
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        "",
        [OSLO],
    ),
    (
        "hermes",
        (
            '\n\nI look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>\n'
        ),
        "\n\nI look.\n",
        [OSLO, ("get_time", "{}")],
    ),
    (
        "hermes",
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>\n\nDone.',
        "\n\nDone.",
        [OSLO],
    ),
    # keys in any order, other keys, arguments in a string, none
    ("hermes", '<tool_call>{"arguments": {"city": "Oslo"}, "name": "get_weather"}</tool_call>', "", [OSLO]),
    (
        "hermes",
        '<tool_call>{"id": 7, "name": "f", "x": [{}, "}"], "arguments": {}, "y": null}</tool_call>',
        "",
        [("f", "{}")],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}</tool_call>',
        "",
        [("f", '{"a": "é"}')],
    ),
    ("hermes", '<tool_call>{"arguments": "{}", "name": "f"}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": 12}</tool_call>', "", [("f", "12")]),
    (
        "hermes",
        '<tool_call>{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}</tool_call>',
        "",
        [("f", '{"a": 1}')],
    ),
    ("hermes", '<tool_call>[{"name": "f"}, {"name": "g"}]</tool_call>', "", [("f", "{}"), ("g", "{}")]),
    ("hermes", '<tool_call>{"name": "f"}\n{"name": "g"}</tool_call>', "", [("f", "{}"), ("g", "{}")]),
    # braces, quotes, escapes and markers within strings; escapes stay as they are
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "}{ \\"x\\\\\\" ] </tool_call>", "b": [{"c": "\\u00e9\\n"}]}}</tool_call>',
        "",
        [("f", '{"a": "}{ \\"x\\\\\\" ] </tool_call>", "b": [{"c": "\\u00e9\\n"}]}')],
    ),
    # a surrogate that stands alone cannot be sent
    ("hermes", '<tool_call>{"name": "f\\ud800", "arguments": {}}</tool_call>', "", [("f\ufffd", "{}")]),
    ("hermes", '<tool_call>{"name": "f\\ud83d\\ude00", "arguments": {}}</tool_call>', "", [("f😀", "{}")]),
    # no calls
    ("hermes", "<tool_call>I would rather not.</tool_call> Bye.", "I would rather not. Bye.", []),
    ("hermes", '<tool_call>{"city": "Oslo"}</tool_call>', '{"city": "Oslo"}', []),
    ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>', '{"name": 3, "arguments": {}}', []),
    ("hermes", '<tool_call>{"x</tool_call>": 1', '{"x": 1', []),
    ("hermes", "</tool_call>A<tool_call></tool_call>B", "AB", []),
    ("hermes", '<tool_call>{"name": "f"', '{"name": "f"', []),
    ("hermes", '<tool_call>[{"name": "f"}, {"x": 1}]</tool_call>!', '{"x": 1}!', [("f", "{}")]),
    # calls that break off
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "b', "", [("f", '{"a": "b')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>ok', "ok", [("f", '{"a": 1')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [1}, 2}</tool_call>ok', "ok", [("f", '{"a": [1')]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1<tool_call>{"name": "g", "arguments": {}}</tool_call>',
        "",
        [("f", '{"a": 1'), ("g", "{}")],
    ),
    (
        "nemotron_deci",
        '<TOOLCALL>[{"name": "f", "arguments": {}}, {"name": "g"}]</TOOLCALL>',
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    ("jamba", 'Hm.<tool_calls>[{"name": "f", "arguments": {}}]</tool_calls>', "Hm.", [("f", "{}")]),
    ("phi4", 'functools[{"name": "f", "arguments": {"functools[": 1}}]', "", [("f", '{"functools[": 1}')]),
    ("phi4", "use functools.wraps", "use functools.wraps", []),
    ("granite", '<|tool_call|>[{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
    ("granite", '<tool_call>[{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
    ("granite", "<|tool_call|>[]", "", []),
    # Llama: bare JSON
    ("llama3_json", '{"name": "get_weather", "parameters": {"city": "Oslo"}}', "", [OSLO]),
    ("llama3_json", '\n{"name": "get_time"}', "", [("get_time", "{}")]),
    ("llama3_json", '<|python_tag|>{"name": "other"}', "", [("other", "{}")]),
    (
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}; {"name": "get_time", "parameters": {}}',
        "",
        [OSLO, ("get_time", "{}")],
    ),
    (
        "llama3_json",
        'Now: <|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Oslo"}}',
        "Now: ",
        [OSLO],
    ),
    ("llama3_json", '  {"answer": {"name": "x"}}', '  {"answer": {"name": "x"}}', []),
    ("llama3_json", '{"name": "Alice", "age": 3}', '{"name": "Alice", "age": 3}', []),
    ("llama3_json", '{"name": "Alice"}', '{"name": "Alice"}', []),
    ("llama3_json", 'Take {"name": "f", "parameters": {}}', 'Take {"name": "f", "parameters": {}}', []),
    ("llama3_json", "<|python_tag|>print(1)", "print(1)", []),
    # Mistral
    ("mistral", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}]', "", [OSLO]),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]',
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    (
        "mistral",
        'Well[TOOL_CALLS]get_weather{"city": "Oslo"}[TOOL_CALLS]get_time{}',
        "Well",
        [OSLO, ("get_time", "{}")],
    ),
    ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}', "", [OSLO]),
    ("mistral", '[TOOL_CALLS]f{"a": "[TOOL_CALLS]"}', "", [("f", '{"a": "[TOOL_CALLS]"}')]),
    ("mistral", "[TOOL_CALLS][TOOL_CALLS] [ARGS]see [1]", "see [1]", []),
    ("mistral", "[TOOL_CALLS]no call here", "no call here", []),
    ("mistral", "a [TOOL", "a [TOOL", []),
    # Python
    ("pythonic", "[get_weather(city='Oslo')]", "", [OSLO]),
    (
        "pythonic",
        " [get_weather(city=\"O's )]\", days=-3, tags=[1.5, (True, None), {'a': 'b'}]), ns.get_time()]",
        "",
        [
            ("get_weather", '{"city": "O\'s )]", "days": -3, "tags": [1.5, [true, null], {"a": "b"}]}'),
            ("ns.get_time", "{}"),
        ],
    ),
    ("llama4_pythonic", "<|python_start|>[get_weather(city='Oslo')]<|python_end|>", "", [OSLO]),
    ("pythonic", "[get_weather(city='Oslo')]\nHere.", "\nHere.", [OSLO]),
    ("pythonic", "[get_weather(city='Oslo'), get_weather(x)]", ", get_weather(x)]", [OSLO]),
    ("pythonic", "[get_weather(city='Oslo')", "", [OSLO]),
    ("pythonic", "[get_weather(city='Os", "[get_weather(city='Os", []),
    ("pythonic", "[f(x) for x in y]", "[f(x) for x in y]", []),
    ("pythonic", "[1, 2, 3]", "[1, 2, 3]", []),
    ("pythonic", "[link](http://x)", "[link](http://x)", []),
    ("pythonic", "Look: [get_time()]", "Look: [get_time()]", []),
    # Qwen3-Coder
    (
        "qwen3_coder",
        (
            'Sure.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo "N"\n\n</parameter>\n<parameter=days>\n3\n'
            "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>"
        ),
        "Sure.\n",
        [("get_weather", '{"city": "Oslo \\"N\\"\\n", "days": 3}'), ("get_time", "{}")],
    ),
    (
        "qwen3_coder",
        (
            "<function=get_weather><parameter=tags>['a', True]</parameter><parameter=anything>true</parameter>"
            "<parameter=where>null</parameter><parameter=unit>kelvin</parameter><parameter=unknown>3</parameter></function>"
        ),
        "",
        [("get_weather", '{"tags": ["a", true], "anything": true, "where": "null", "unit": "kelvin", "unknown": "3"}')],
    ),
    (
        "qwen3_coder",
        "<function=get_weather><parameter=days>three</parameter></function>",
        "",
        [("get_weather", '{"days": "three"}')],
    ),
    (
        "qwen3_coder",
        "<tool_call><function=get_weather><parameter=city>Oslo<parameter=days>3</tool_call>ok",
        "ok",
        [("get_weather", '{"city": "Oslo", "days": 3}')],
    ),
    ("qwen3_coder", "<function=get_weather><parameter=city>\nOs", "", [("get_weather", '{"city": "Os')]),
    ("qwen3_coder", "<tool_call>I think so.</tool_call>", "I think so.", []),
    ("qwen3_coder", "<function=\n>", "\n>", []),
    ("qwen3_coder", "x</parameter>y<parameter=z", "xyz", []),
    # GLM
    (
        "glm45",
        (
            "Let me see.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n"
            "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>get_time\n</tool_call>"
        ),
        "Let me see.\n",
        [("get_weather", '{"city": "Oslo", "days": 3}'), ("get_time", "{}")],
    ),
    (
        "glm47",
        '<tool_call>f<arg_key>a</arg_key><arg_value>{"x": [1]}</arg_value><arg_key>b</arg_key><arg_value>two</arg_value></tool_call>',
        "",
        [("f", '{"a": {"x": [1]}, "b": "two"}')],
    ),
    ("glm45", "<tool_call>I have no idea</tool_call>.", "I have no idea.", []),
    ("glm45", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Os", "", [("get_weather", '{"city": "Os')]),
    # DeepSeek
    (
        "deepseek_v3",
        (
            f'Yes.{DS_CALLS}{DS_CALL}function{DS_SEP}get_weather\n```json\n{{"city": "Oslo"}}\n```{DS_END}\n{DS_CALL}function'
            f"{DS_SEP}get_time\n```json\n{{}}\n```{DS_END}{DS_CALLS_END}"
        ),
        "Yes.",
        [OSLO, ("get_time", "{}")],
    ),
    (
        "deepseek_v3_1",
        f'{DS_CALLS}{DS_CALL}get_weather{DS_SEP}{{"city": "Oslo"}}{DS_END}{DS_CALL}get_time{DS_SEP}{{}}{DS_END}{DS_CALLS_END}',
        "",
        [OSLO, ("get_time", "{}")],
    ),
    ("deepseek_v31", f"{DS_CALLS}{DS_CALL}get_time{DS_END}{DS_CALLS_END}", "get_time", []),
    ("deepseek_v3", f"{DS_CALL}function{DS_SEP}f\nnothing{DS_END}", "functionf\nnothing", []),
    # Kimi
    (
        "kimi_k2",
        (
            f'Hm.{KIMI}{KIMI_CALL}functions.get_weather:0{KIMI_ARGS}{{"city": "Oslo"}}{KIMI_CALL_END}{KIMI_CALL}get_time:1'
            f"{KIMI_ARGS}{{}}{KIMI_CALL_END}{KIMI_END}"
        ),
        "Hm.",
        [OSLO, ("get_time", "{}")],
    ),
    ("kimi_k2", f"{KIMI}{KIMI_CALL}what is this{KIMI_ARGS}", "what is this", []),
]
IDS = [f"{number}-{case[0]}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES, ids=IDS)
def test_as_a_whole(parse, name, text, content, calls):
    answer = parse(text, tool_calls=name)
    assert (answer.content, answer.calls, answer.reasoning) == (content, calls, "")


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES, ids=IDS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
def test_in_pieces(parse, name, text, content, calls, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    answer = parse(pieces=pieces, tool_calls=name)
    assert (answer.content, answer.calls, answer.reasoning) == (content, calls, "")


def test_arguments_are_json_as_the_client_reads_it(parse):
    text = '<function=get_weather><parameter=city>"\\ \t é \u2028 </param</parameter></function>'
    answer = parse(text, tool_calls="qwen3_coder")
    assert json.loads(answer.calls[0][1]) == {"city": '"\\ \t é \u2028 </param'}


def test_ids_come_from_the_given_maker_and_differ(parse):
    text = '<tool_call>{"name": "f"}</tool_call>' * 2
    assert parse(text, tool_calls="hermes").ids == ["call_" + "0" * 24, "call_" + "0" * 23 + "1"]


def test_mistral_ids_have_nine_characters(parse):
    text = "[TOOL_CALLS]f{}[TOOL_CALLS]g[CALL_ID]a1B2c3D4e[ARGS]{}[TOOL_CALLS]h[CALL_ID]too-long-for-it[ARGS]{}"
    assert parse(text, tool_calls="mistral").ids == ["000000000", "a1B2c3D4e", "000000001"]


def test_kimi_keeps_the_ids_of_the_model(parse):
    text = f"{KIMI}{KIMI_CALL}functions.f:0{KIMI_ARGS}{{}}{KIMI_CALL_END}{KIMI_CALL}g{KIMI_ARGS}{{}}{KIMI_CALL_END}{KIMI_END}"
    assert parse(text, tool_calls="kimi_k2").ids == ["functions.f:0", "call_" + "0" * 24]


def test_json_arguments_come_as_they_are_written():
    parser = Hermes(ToolCallOptions())
    named = parser.feed('<tool_call>{"name": "f", "arguments": {"a": ')
    assert [(c.index, c.name, c.arguments) for c in named.tool_calls] == [(0, "f", '{"a": ')]
    assert [c.arguments for c in parser.feed('"one ').tool_calls] == ['"one ']
    assert [c.arguments for c in parser.feed('two"}').tool_calls] == ['two"}']
    assert parser.feed("}</tool_").tool_calls == []
    assert parser.finish().content == "</tool_"


def test_text_parameters_come_as_they_are_written():
    parser = Qwen3Coder(ToolCallOptions())
    (named,) = parser.feed("<tool_call><function=f><parameter=a>\none").tool_calls
    assert (named.name, named.arguments) == ("f", '{"a": "one')
    assert [c.arguments for c in parser.feed(' "two"\n').tool_calls] == [' \\"two\\"']
    assert [c.arguments for c in parser.feed("three\n</par").tool_calls] == ["\\nthree"]
    assert [c.arguments for c in parser.feed("ameter></function>").tool_calls] == ['"}']
