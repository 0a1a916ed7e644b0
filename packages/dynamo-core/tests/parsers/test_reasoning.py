"""Reasoning apart from content, and both together with tool calls."""

from __future__ import annotations

import pytest

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
OSLO = ("get_weather", '{"city": "Oslo"}')

#: (parser, end of the prompt, text, reasoning, content)
CASES = [
    ("qwen3", "", "<think>\nHm.\n</think>\n\nHello", "\nHm.\n", "\n\nHello"),
    ("qwen3", "", "\n <think>Hm.</think>Hello", "Hm.", "Hello"),
    ("qwen3", "", "Hello", "", "Hello"),
    ("qwen3", "", " \n", "", " \n"),
    ("qwen3", "", "Hello</think>there", "", "Hellothere"),
    ("qwen3", "", "<think>a<think>b</think></think>c", "ab", "c"),
    ("qwen3", "", "<think>a</think>b<think>c</think>d", "ac", "bd"),
    ("qwen3", "", "<think>Hm", "Hm", ""),
    ("qwen3", "", "<think>1 < 2 </thin", "1 < 2 </thin", ""),
    ("qwen3", "", "<thi", "", "<thi"),
    ("qwen3", "...<|im_start|>assistant\n<think>\n", "Hm.</think>Hello", "Hm.", "Hello"),
    ("qwen3", "...<think>\n\n</think>\n\n", "Hello", "", "Hello"),
    ("basic", "Say <think> now", "Hello", "", "Hello"),
    ("glm45", "", "<think>Hm.</think>Hello", "Hm.", "Hello"),
    ("deepseek_v3_1", "<｜Assistant｜></think>", "Hello", "", "Hello"),
    ("deepseek_r1", "", "Hm.</think>Hello", "Hm.", "Hello"),
    ("deepseek_r1", "", "<think>Hm.</think>Hello", "Hm.", "Hello"),
    ("deepseek_r1", "<think>\n</think>", "Hello", "", "Hello"),
    ("step3", "", "Hm", "Hm", ""),
    ("kimi_k2", "", "◁think▷Hm.◁/think▷Hello", "Hm.", "Hello"),
    ("mistral", "", "[THINK]Hm [1].[/THINK]Hello [2]", "Hm [1].", "Hello [2]"),
    ("seed_oss", "", "<seed:think>Hm.</seed:think>Hello", "Hm.", "Hello"),
    (
        "granite",
        "",
        "Here is my thought process:\nHm. Here is\n\nHere is my response: Hello. Here is my response:",
        "\nHm. Here is\n\n",
        " Hello. Here is my response:",
    ),
    ("granite", "", " Here's my thought process: Hm.Here's my response:Hello", " Hm.", "Hello"),
    ("granite", "", "Here is my plan", "", "Here is my plan"),
    ("granite", "", "Now. Here is my thought process:", "", "Now. Here is my thought process:"),
    ("granite", "", "Here is my th", "", "Here is my th"),
    (
        "gpt_oss",
        "",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>",
        "Hm.",
        "Hello",
    ),
    ("gpt_oss", "", "<|channel|>commentary to=functions.f<|message|>{}<|call|>", "{}", ""),
    ("gpt_oss", "", "Hello", "", "Hello"),
]
IDS = [f"{number}-{case[0]}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize(("name", "prompt", "text", "reasoning", "content"), CASES, ids=IDS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_reasoning(parse, name, prompt, text, reasoning, content, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    answer = parse(pieces=pieces, reasoning=name, prompt=prompt)
    assert (answer.reasoning, answer.content, answer.calls) == (reasoning, content, [])


#: (reasoning parser, tool-call parser, text, reasoning, content, calls)
TOGETHER = [
    ("qwen3", "hermes", f"<think>\nHm.\n</think>\n\n{CALL}", "\nHm.\n", "", [OSLO]),
    ("qwen3", "hermes", f"<think>Use {CALL}?</think>No.", f"Use {CALL}?", "No.", []),
    (
        "qwen3",
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "<think>b</think>"}}</tool_call></think>',
        "",
        "</think>",
        [("f", '{"a": "<think>b</think>"}')],
    ),
    (
        "kimi_k2",
        "kimi_k2",
        (
            "<think>Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}"
            "<|tool_call_end|><|tool_calls_section_end|>"
        ),
        "Hm.",
        "",
        [("f", "{}")],
    ),
    (
        "glm45",
        "glm45",
        "<think>Hm.</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
        "Hm.",
        "",
        [OSLO],
    ),
    ("deepseek_r1", "pythonic", "Hm.</think>\n[get_weather(city='Oslo')]", "Hm.", "", [OSLO]),
    ("qwen3", "", f"<think>Hm.</think>{CALL}", "Hm.", CALL, []),
    # gpt-oss: one parser does both
    (
        "gpt_oss",
        "harmony",
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
            '{"city": "Oslo"}<|call|>'
        ),
        "Hm.",
        "I look.",
        [OSLO],
    ),
    (
        "",
        "harmony",
        (
            "<|channel|>analysis<|message|>A<|end|><|start|>assistant to=get_time<|channel|>commentary<|message|><|call|>"
            "<|start|>assistant<|channel|>analysis<|message|>B<|channel|>final<|message|>C<|message|>D"
        ),
        "A\nB",
        "CD",
        [("get_time", "{}")],
    ),
    ("", "harmony", "<|channel|>analysis to=python code<|message|>1+1<|call|>", "1+1", "", []),
    ("", "harmony", "<|channel|>commentary to=functions.f<|channel|>commentary json<|message|>{", "", "", [("f", "{")]),
    ("", "harmony", "a<|end|>b<|message|>c<|return|>\n<|channel|>ana", "", "abc\n", []),
    ("", "harmony", "<|channel|><|end|>a", "", "a", []),
]


@pytest.mark.parametrize(("reasoner", "caller", "text", "reasoning", "content", "calls"), TOGETHER)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_together(parse, reasoner, caller, text, reasoning, content, calls, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    answer = parse(pieces=pieces, reasoning=reasoner, tool_calls=caller)
    assert (answer.reasoning, answer.content, answer.calls) == (reasoning, content, calls)
