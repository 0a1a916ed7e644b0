import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.serve.lines import LineSplitter


def test_partial_lines_wait_for_their_end():
    splitter = LineSplitter()
    assert splitter.feed(b"load") == []
    assert splitter.feed(b"ing\nready\nser") == ["loading", "ready"]
    assert splitter.finish() == ["ser"]
    assert splitter.finish() == []


def test_progress_bar_leaves_its_last_state():
    assert LineSplitter().feed(b"\r10%\r50%\r100%\n") == ["100%"]


def test_windows_line_ends_and_empty_lines():
    assert LineSplitter().feed(b"one\r\n\r\ntwo\n") == ["one", "", "two"]


def test_bytes_that_are_not_text_are_replaced():
    assert LineSplitter().feed(b"\xff\xfe ok\n") == ["�� ok"]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_huge_lines_are_cut_and_memory_is_bounded(end):
    splitter = LineSplitter(max_line_bytes=10)
    lines = []
    for _ in range(5):
        lines += splitter.feed(b"x" * 7)
        assert len(splitter._rest) <= 10
    lines += splitter.feed(end) + splitter.finish()
    assert "".join(lines) == "x" * 35
    assert max(map(len, lines)) == 10


@given(st.lists(st.binary(max_size=30)))
def test_cutting_of_the_stream_does_not_matter(chunks):
    splitter = LineSplitter(max_line_bytes=1000)
    pieces = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.finish()
    whole = LineSplitter(max_line_bytes=1000)
    assert pieces == whole.feed(b"".join(chunks)) + whole.finish()
