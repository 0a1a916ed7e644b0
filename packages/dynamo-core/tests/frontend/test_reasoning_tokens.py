"""Which tokens count as reasoning: those whose text went there, however they are gathered, and no others."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dynamo.reference
from dynamo.frontend.reasoning_tokens import ReasoningTokens
from dynamo.parsers import make_output_parser
from dynamo.plugins import plugins
from dynamo.preprocessor import Tokenizer
from dynamo.preprocessor.detokenizer import Detokenizer
from dynamo.protocols.parsing import ParsedDelta

TOKENIZER = Tokenizer.from_directory(Path(dynamo.reference.__path__[0]) / "demo_model")
HARMONY = (
    "<|channel|>analysis<|message|>",
    "I look.",
    '<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>',
)
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "<think>no</think>"}}\n</tool_call>'


def counted(ids, *, reasoning="", tool_calls="", cuts=()):
    """Tokens that count when `ids` come in wake-ups that end at `cuts`."""
    parser = make_output_parser(plugins(), reasoning=reasoning, tool_calls=tool_calls)
    detokenizer = Detokenizer(TOKENIZER, skip_special_tokens=not parser.needs_special_tokens)
    tokens = ReasoningTokens(TOKENIZER, special_tokens=parser.needs_special_tokens)
    bounds = [0, *sorted(cuts), len(ids)]
    news = []
    for begin, end in itertools.pairwise(bounds):
        text = detokenizer.feed(ids[begin:end])
        news.append(tokens.add(ids[begin:end], text, parser.feed(text) if text else ParsedDelta()))
    rest = detokenizer.finish()
    first = parser.feed(rest) if rest else ParsedDelta()
    last = parser.finish()
    merged = ParsedDelta(
        first.content + last.content, first.reasoning + last.reasoning, first.tool_calls + last.tool_calls
    )
    news.append(tokens.add([], rest, merged))
    assert sum(news) == tokens.count
    return tokens.count


def expected(before, reasoning, after):
    """`after` and `before` are text or marks around the reasoning; the ids, and how many reach into it."""
    ids = TOKENIZER.encode(before + reasoning + after).tolist()
    begin = len(before.encode())
    end = begin + len(reasoning.encode())
    position = count = 0
    for token_id in ids:
        size = len(TOKENIZER.token_bytes(token_id))
        count += position < end and position + size > begin
        position += size
    return ids, count


@pytest.mark.parametrize(
    ("before", "reasoning", "after", "parser"),
    [
        ("<think>", "The user asks. a < b and </ is no tag.", "</think>Hello", {"reasoning": "qwen3"}),
        ("\n\n<think>", "\nHm.\n", "</think>\n\nHello", {"reasoning": "qwen3"}),
        ("", "Without an opening tag", "</think>Hello", {"reasoning": "deepseek_r1"}),
        ("<think>", "It is cut off <", "", {"reasoning": "qwen3"}),
        ("<think>", "日本語 😀 é", "</think>日本語 😀", {"reasoning": "qwen3"}),
        ("", "", "No reasoning at all, a < b.", {"reasoning": "qwen3"}),
        ("<think>", "I call.", f"</think>{CALL}", {"reasoning": "qwen3", "tool_calls": "hermes"}),
        ("Here is my thought process:", "Hm.", "Here is my response:Hello", {"reasoning": "granite"}),
        (*HARMONY, {"tool_calls": "harmony"}),
        (*HARMONY, {"tool_calls": "harmony", "reasoning": "gpt_oss"}),
    ],
)
def test_tokens_of_the_reasoning_count_and_others_do_not(before, reasoning, after, parser):
    ids, count = expected(before, reasoning, after)
    assert counted(ids, **parser, cuts=range(1, len(ids))) == count
    assert counted(ids, **parser) == count
    for size in (2, 3, 5):
        assert counted(ids, **parser, cuts=range(size, len(ids), size)) == count


@given(
    st.text("ab .<>/\n日é😀", max_size=40),
    st.text("AB .\n日é😀", max_size=20),
    st.sets(st.integers(1, 200)),
)
def test_it_does_not_matter_how_tokens_are_gathered(reasoning, after, cuts):
    ids, count = expected("<think>", reasoning, f"</think>{after}")
    assert counted(ids, reasoning="qwen3", cuts=[cut for cut in cuts if cut < len(ids)]) == count


def test_analyses_that_are_joined_count_without_the_break_between_them():
    first, second = expected(HARMONY[0], "I look.", ""), expected(HARMONY[0], "I know.", "")
    end = TOKENIZER.encode("<|end|><|start|>assistant").tolist()
    ids = first[0] + end + second[0]
    assert counted(ids, reasoning="gpt_oss", cuts=range(1, len(ids))) == first[1] + second[1]


def test_what_is_not_found_again_is_divided_by_characters():
    tokens = ReasoningTokens(TOKENIZER, special_tokens=True)
    ids = TOKENIZER.encode("shouted words here").tolist()
    assert tokens.add(ids, "shouted words here", ParsedDelta("here", "SHOUTED WORDS")) == round(len(ids) * 13 / 18)


def test_a_long_call_does_not_pile_up():
    tokens = ReasoningTokens(TOKENIZER, special_tokens=True)
    (space,) = TOKENIZER.encode(" ").tolist()
    for _ in range(10_000):
        assert tokens.add([space], " ", ParsedDelta()) == 0
    ids = TOKENIZER.encode("Hm.").tolist()
    assert tokens.add(ids, "Hm.", ParsedDelta("", "Hm.")) == len(ids)
