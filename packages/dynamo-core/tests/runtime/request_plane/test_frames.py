"""Framing: any cut of the byte stream gives the same messages, and no input does more than raise TransportError."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import TransportError
from dynamo.runtime.request_plane.frames import HEADER_BYTES, FrameReader, encode_frames

messages = st.lists(
    st.lists(st.one_of(st.integers(0, 1000), st.binary(max_size=40), st.text(max_size=20)), min_size=1, max_size=4).map(
        tuple
    ),
    min_size=1,
    max_size=8,
)


@given(st.lists(messages, max_size=5), st.data())
def test_any_cut_gives_the_same_messages(frames, data):
    stream = b"".join(encode_frames(frame, 1 << 20) for frame in frames)
    reader = FrameReader(1 << 20)
    got, start = [], 0
    while start < len(stream):
        size = data.draw(st.integers(1, len(stream) - start))
        got += reader.feed(stream[start : start + size])
        start += size
    assert [tuple(m) for m in got] == [m for frame in frames for m in frame]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_never_raises_anything_else(pieces):
    reader = FrameReader(64)
    try:
        for piece in pieces:
            for message in reader.feed(piece):
                assert isinstance(message, list)
    except TransportError as error:
        assert "frame" in error.message


def test_deep_nesting_is_refused():
    body = b"\x91" * 100_000 + b"\x90"
    reader = FrameReader(1 << 20)
    with pytest.raises(TransportError, match="malformed frame"):
        list(reader.feed(len(body).to_bytes(HEADER_BYTES, "little") + body))


def test_an_oversized_frame_is_refused_before_it_is_held():
    reader = FrameReader(100)
    with pytest.raises(TransportError, match="frame of 101 bytes; the limit is 100"):
        list(reader.feed((101).to_bytes(HEADER_BYTES, "little")))


def test_what_does_not_fit_one_frame_is_cut_between_messages():
    parts = [(6, n, [b"x" * 50]) for n in range(10)]
    stream = encode_frames(parts, 128)
    assert [tuple(m) for m in FrameReader(128).feed(stream)] == [(6, n, [b"x" * 50]) for n in range(10)]
    with pytest.raises(TransportError, match="message of"):
        encode_frames([(6, 1, [b"x" * 200])], 128)


def test_recorded_frames_of_protocol_1_0_still_decode():
    """Bytes as version 1.0 sends them; a later minor version must go on reading them."""
    recorded = bytes.fromhex(
        "1500000092" + "93" + "06" + "01" + "92" + "c401aa" + "c401bb" + "92" + "07" + "01" + "90" * 0
    )
    body = recorded[4:]
    framed = len(body).to_bytes(4, "little") + body
    assert list(FrameReader(1 << 20).feed(framed)) == [[6, 1, [b"\xaa", b"\xbb"]], [7, 1]]
    assert msgspec.msgpack.decode(body) == [[6, 1, [b"\xaa", b"\xbb"]], [7, 1]]
