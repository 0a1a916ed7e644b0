"""Requests and outputs on the wire."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dynamo.protocols.llm import (
    GuidedDecoding,
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    TokenLogprob,
    Usage,
    pack_token_ids,
    unpack_token_ids,
)


def wire(value):
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))


@pytest.mark.parametrize("ids", [[], [0], [1, 2, 3], [2**32 - 1, 0]])
def test_token_ids_are_packed_and_unpacked(ids):
    assert unpack_token_ids(pack_token_ids(ids)).tolist() == ids


def test_token_ids_are_little_endian_whatever_the_array_was():
    assert pack_token_ids([1, 258]) == b"\x01\x00\x00\x00\x02\x01\x00\x00"
    assert pack_token_ids(np.array([1, 258], dtype=">i8")) == b"\x01\x00\x00\x00\x02\x01\x00\x00"


def test_ids_that_are_a_view_of_packed_bytes_are_not_copied():
    packed = pack_token_ids(range(5))
    assert pack_token_ids(unpack_token_ids(packed)) is packed
    assert pack_token_ids(unpack_token_ids(packed)[::-1]) == pack_token_ids([4, 3, 2, 1, 0])
    assert pack_token_ids(unpack_token_ids(packed)[1:]) == packed[4:]
    backwards = np.ndarray(5, "<u4", buffer=packed, offset=16, strides=(-4,))
    assert pack_token_ids(backwards) == pack_token_ids([4, 3, 2, 1, 0])
    assert pack_token_ids(np.frombuffer(packed, "<u2")[:5]) == pack_token_ids([0, 0, 1, 0, 2])


def test_unpacking_makes_no_copy_and_cannot_be_written():
    array = unpack_token_ids(pack_token_ids([1, 2]))
    assert array.dtype == np.uint32
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 5


@pytest.mark.parametrize("ids", [[-1], [2**32]])
def test_ids_that_do_not_fit_are_refused(ids):
    with pytest.raises(OverflowError):
        pack_token_ids(ids)


def test_torn_bytes_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        unpack_token_ids(b"\x01\x00\x00")


def test_a_request_survives_the_wire():
    request = PreprocessedRequest(
        request_id="r",
        model="m",
        token_ids=pack_token_ids([5, 6, 7]),
        sampling=SamplingOptions(temperature=0.0, logit_bias={3: -100.0}, logprobs=2, seed=7),
        stop=StopConditions(max_tokens=5, stop_token_ids=[1, 2], ignore_eos=True),
        prior_output_tokens=1,
        dp_rank=0,
        guided=GuidedDecoding("choice", '["a"]'),
        kv_transfer_params={"blocks": [1, 2], "peer": "x"},
        trace={"traceparent": "00-1-2-01"},
    )
    assert wire(request) == request
    assert wire(request).prompt().tolist() == [5, 6, 7]


def test_defaults_cost_nothing_on_the_wire():
    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(PreprocessedRequest("r", "m", b"")))
    assert raw == {"request_id": "r", "model": "m", "token_ids": b""}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(LLMEngineOutput([5]))) == {"token_ids": [5]}


def test_fields_of_a_later_version_are_ignored():
    raw = {"request_id": "r", "model": "m", "token_ids": b"", "colour": "red", "sampling": {"warmth": 3}}
    assert msgspec.convert(raw, PreprocessedRequest) == PreprocessedRequest("r", "m", b"")


def test_an_output_survives_the_wire():
    output = LLMEngineOutput(
        [5, 6],
        logprobs=[TokenLogprob(5, -0.5, [(5, -0.5), (9, -2.0)]), TokenLogprob(6, -1.0)],
        prompt_logprobs=[None, TokenLogprob(1, -0.1)],
        finish_reason="stop",
        stop_reason=2,
        usage=Usage(10, 2, 8),
        step=4,
    )
    assert wire(output) == output


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (PreprocessedRequest, {"request_id": "r", "model": "m"}),
        (PreprocessedRequest, {"request_id": "r", "model": "m", "token_ids": [1, 2]}),
        (LLMEngineOutput, {"finish_reason": "bored"}),
        (GuidedDecoding, {"kind": "haiku"}),
    ],
)
def test_what_is_malformed_is_refused(kind, raw):
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=kind)
