"""Paged, tiled attention against a plain float64 computation, at sizes that need several tiles."""

from __future__ import annotations

import numpy as np
import pytest

from dynamo.reference.attention import (
    GATHER_FLOATS,
    TILE_FLOATS,
    DecodeGroup,
    PrefillSpan,
    attend_decode,
    attend_prefill,
    decode_mask,
)

KV_HEADS, GROUP, DIM, BLOCK = 2, 2, 32, 16


def _plain(query, keys, values, position, window):
    """One query ``[kv_heads, group, dim]`` over keys ``[n, kv_heads, dim]``, of which it sees those up to `position`."""
    first = 0 if window is None else max(0, position - window + 1)
    keys, values = keys[first : position + 1].astype(np.float64), values[first : position + 1].astype(np.float64)
    scores = np.einsum("kgd,nkd->kgn", query.astype(np.float64), keys)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("kgn,nkd->kgd", weights, values)


@pytest.fixture
def paged():
    """Random keys and values of one sequence, and the same in shuffled blocks."""

    def make(length, seed=0):
        random = np.random.default_rng(seed)
        blocks = -(-length // BLOCK)
        keys, values = random.normal(size=(2, blocks * BLOCK, KV_HEADS, DIM)).astype(np.float32)
        table = random.permutation(blocks)
        stored = np.empty((2, blocks, BLOCK, KV_HEADS, DIM), np.float32)
        stored[:, table] = np.stack([keys, values]).reshape(2, blocks, BLOCK, KV_HEADS, DIM)
        return keys, values, stored, table, random

    return make


@pytest.mark.parametrize("window", [None, 5, 4000, 10_000])
def test_decoding_sequences_of_different_length(paged, window):
    longest = GATHER_FLOATS // (KV_HEADS * DIM) // 2  # two sequences per tile
    keys, values, stored, table, random = paged(longest)
    lengths = [longest, 7, longest - 1, longest // 2, 1]
    tables = np.stack([table] * len(lengths))
    for row, length in zip(tables, lengths, strict=True):
        row[-(-length // BLOCK) :] = 0  # padding
    group = DecodeGroup(np.arange(len(lengths)), tables, np.array(lengths))
    queries = random.normal(size=(len(lengths), KV_HEADS, GROUP, DIM)).astype(np.float32)
    answer = attend_decode(queries, *stored, tables, decode_mask(group, BLOCK, window))
    for row, length in enumerate(lengths):
        expected = _plain(queries[row], keys, values, length - 1, window)
        np.testing.assert_allclose(answer[row], expected, atol=2e-4)


@pytest.mark.parametrize("window", [None, 3, 700])
@pytest.mark.parametrize(("length", "chunk"), [(40, 40), (40, 13), (20_000, 230)])
def test_a_chunk_at_the_end_of_a_sequence(paged, window, length, chunk):
    keys, values, stored, table, random = paged(length)
    if chunk > 100:
        assert TILE_FLOATS // (KV_HEADS * GROUP * length) < chunk  # more than one tile
    queries = random.normal(size=(chunk, KV_HEADS, GROUP, DIM)).astype(np.float32)
    answer = attend_prefill(queries, *stored, PrefillSpan(0, chunk, table, length), window)
    for row in (0, 1, chunk // 2, chunk - 2, chunk - 1):
        expected = _plain(queries[row], keys, values, length - chunk + row, window)
        np.testing.assert_allclose(answer[row], expected, atol=2e-4)
