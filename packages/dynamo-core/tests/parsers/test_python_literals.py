"""Python literals as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.parsers.python_literals import json_of_keywords, json_of_literal
from dynamo.parsers.source import Malformed

LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(LITERALS)
@settings(max_examples=150, deadline=None)
def test_repr_comes_back(value):
    assert json.loads(json_of_literal(repr(value))) == value


@given(st.text(alphabet="[]{}()'\",:\\=.eE+-_x0u1TrueNon ", max_size=30))
@settings(max_examples=150, deadline=None)
def test_whatever_is_accepted_is_json(text):
    try:
        value = json_of_literal(text)
    except Malformed:
        return
    read = json.loads(value, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert json.loads(json_of_literal(value)) == read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1, (2,))", [1, [2]]),
        ("()", []),
        ("[1, 2,]", [1, 2]),
        ("{1: 'a', None: 2}", {"1": "a", "null": 2}),
        ("true", True),
        ("1_000", 1000),
        ("+1.", 1.0),
        (".5", 0.5),
        ("'a' \"b\"\n'c'", "abc"),
        ('"""a"""', "a"),
        (r"'\x41\u00e9\U0001F600\101\q\n\\'", "Aé😀A\\q\n\\"),
        (r"'\ud83d\ude00 \ud800'", "😀 \ufffd"),
    ],
)
def test_literals(text, value):
    assert json.loads(json_of_literal(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1 2",
        "[1",
        "[1 2]",
        "[,]",
        "{1}",
        "{'a' 1}",
        "'a",
        "f'a'",
        "007",
        "1e",
        "1j",
        "--1",
        "٣",
        "[" * 500,
        r"'\UFFFFFFFF'",
    ],
)
def test_what_is_no_literal_is_malformed(text):
    with pytest.raises(Malformed):
        json_of_literal(text)


def test_keywords():
    assert json.loads(json_of_keywords(" city = 'Oslo', days=3 , ")) == {"city": "Oslo", "days": 3}
    assert json_of_keywords("") == "{}"
    for wrong in ("'Oslo'", "a=1 b=2", "a==1", "a=", "1=2", "**a"):
        with pytest.raises(Malformed):
            json_of_keywords(wrong)
