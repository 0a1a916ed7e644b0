"""Where values end, whatever the pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.parsers.scanner import JSON, MAX_DEPTH, PYTHON, Syntax, ValueScanner

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def scan(text: str, syntax: Syntax = JSON) -> tuple[int, bool, bool]:
    scanner = ValueScanner(syntax)
    return scanner.feed(text), scanner.done, scanner.broken


def scan_by_character(text: str, syntax: Syntax = JSON) -> tuple[int, bool, bool]:
    scanner, position = ValueScanner(syntax), 0
    for index in range(len(text)):
        taken = scanner.feed(text[index])
        position += taken
        if not taken or scanner.done or scanner.broken:
            break
    return position, scanner.done, scanner.broken


@given(value=JSON_VALUES, ascii_only=st.booleans(), rest=st.sampled_from([",", "}", "]", " x", "</tool_call>"]))
@settings(max_examples=150, deadline=None)
def test_every_json_value_ends_where_it_ends(value, ascii_only, rest):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert scan(text + rest) == (len(text), True, False)
    assert scan_by_character(text + rest) == (len(text), True, False)


@given(text=st.text(alphabet='{}[]",:\\ a1<é', max_size=40).filter(lambda t: t and not t[0].isspace()))
@settings(max_examples=150, deadline=None)
def test_pieces_change_nothing(text):
    assert scan(text) == scan_by_character(text)
    assert scan(text, PYTHON) == scan_by_character(text, PYTHON)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1', (7, False, False)),
        ('{"a": 1<', (7, False, True)),
        ("{]", (1, False, True)),
        ("]", (0, False, True)),
        (",", (0, False, True)),
        ("<", (0, False, True)),
        ("tru", (3, False, False)),
        ("true}", (4, True, False)),
        ('"a\\"b" ', (6, True, False)),
        ("{'a': 1}", (1, False, True)),
        ("[" * (MAX_DEPTH + 1), (MAX_DEPTH, False, True)),
    ],
)
def test_what_is_left_open_and_what_breaks(text, expected):
    assert scan(text) == expected


@pytest.mark.parametrize(
    ("text", "end"),
    [("(a='x)', b=\"'\")!", 15), ("()", 2), ("([{'(': 1}])]", 12), ("('\\'')x", 6)],
)
def test_python_calls(text, end):
    assert scan(text, PYTHON) == (end, True, False)
