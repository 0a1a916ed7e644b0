"""Finding markers, whole and beginning."""

from __future__ import annotations

import pytest

from dynamo.parsers.markers import Markers, markers

TAGS = markers("<tool>", "</tool>", "[X]")


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), ("abc", 0), ("a<", 1), ("a</", 2), ("<<", 1), ("<tool", 5), ("<tool>", 0), ("a[", 1), ("<tool [X", 2)],
)
def test_the_longest_end_that_may_become_a_marker_is_held(text, size):
    assert TAGS.held(text) == size


def test_only_text_behind_the_start_is_held():
    assert TAGS.held("<tool", 1) == 0
    assert TAGS.held("<<tool", 1) == 5


def test_the_leftmost_marker_is_found():
    found = TAGS.search("a[X]</tool>")
    assert found is not None
    assert found[0] == "[X]"
    assert TAGS.search("a[X]", 2) is None
    assert TAGS.without("a[X]b</tool>c") == "abc"


def test_absence_is_certain():
    assert TAGS.absent("tool>")
    assert not TAGS.absent("a < b")


def test_sets_are_shared_and_must_not_be_ambiguous():
    assert markers("<a>", "<b>") is markers("<a>", "<b>")
    with pytest.raises(AssertionError):
        Markers(("<a>", "x<a>"))
