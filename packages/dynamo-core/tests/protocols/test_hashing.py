"""Block and sequence hashes: fixed vectors, agreement with plain integer arithmetic, and what must differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.protocols.hashing import (
    HashState,
    block_hashes,
    extend,
    following_hashes,
    seed_of,
    sequence_hashes,
    state_at,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "hashing.json"
MASK = (1 << 64) - 1

ids = st.lists(st.integers(0, 2**32 - 1), max_size=200)


def array(token_ids):
    return np.asarray(token_ids, dtype=np.uint32)


def brute_force(token_ids, block_size, seed):
    """The definition, in Python integers."""
    from dynamo.protocols.hashing import _coefficients

    coefficients = [int(c) for c in _coefficients(block_size)]
    state, power, out = seed, 1, []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        block = (
            sum((t + 1) * c for t, c in zip(token_ids[start : start + block_size], coefficients, strict=True)) & MASK
        )
        block ^= block >> 29
        block = block * 0xBF58476D1CE4E5B9 & MASK
        block ^= block >> 32
        state = (state + block * power) & MASK
        power = power * 0x9E3779B97F4A7C15 & MASK
        mixed = state ^ (state >> 31)
        mixed = mixed * 0x94D049BB133111EB & MASK
        out.append(mixed ^ (mixed >> 29))
    return out


def test_vectors_never_change():
    for vector in json.loads(VECTORS.read_text()):
        seed = seed_of(vector["lora"], vector["cache_salt"], vector["multimodal"])
        got = sequence_hashes(array(vector["token_ids"]), vector["block_size"], seed)
        assert [f"{h:016x}" for h in got.tolist()] == vector["sequence_hashes"], vector


@settings(max_examples=50)
@given(ids, st.integers(1, 33), st.integers(0, MASK))
def test_arrays_agree_with_the_definition(token_ids, block_size, seed):
    assert sequence_hashes(array(token_ids), block_size, seed).tolist() == brute_force(token_ids, block_size, seed)


@given(ids, st.integers(1, 8), st.data())
def test_extending_agrees_with_hashing_at_once(token_ids, block_size, data):
    blocks = block_hashes(array(token_ids), block_size)
    cut = data.draw(st.integers(0, len(blocks)))
    first, values = extend(HashState(5, 0), blocks[:cut])
    rest, _ = extend(HashState(int(values[-1]) if cut else 5, cut), blocks[cut:])
    assert [*first.tolist(), *rest.tolist()] == sequence_hashes(array(token_ids), block_size, 5).tolist()


@given(st.lists(st.integers(0, MASK), max_size=30), st.integers(0, MASK), st.integers(0, 5000))
def test_few_blocks_and_many_get_the_same_hashes(blocks, value, before):
    state = HashState(value, before)
    hashes, values = extend(state, np.asarray(blocks, dtype=np.uint64))
    for count in range(len(blocks) + 1):
        assert following_hashes(state, np.asarray(blocks[:count], dtype=np.uint64)) == hashes.tolist()[:count]
    found = [state_at(each, before + number) for number, each in enumerate(hashes.tolist(), 1)]
    assert found == [HashState(each, before + number) for number, each in enumerate(values.tolist(), 1)]


def test_a_sequence_hash_names_all_that_came_before():
    a, b = [1, 2, 3, 4], [5, 6, 7, 8]
    ab, ba = sequence_hashes(array(a + b), 4), sequence_hashes(array(b + a), 4)
    assert len({*ab.tolist(), *ba.tolist()}) == 4
    assert sequence_hashes(array(a + b + [9]), 4).tolist() == ab.tolist()


def test_salt_lora_and_images_give_other_hashes():
    seeds = {
        seed_of(),
        seed_of(lora="x"),
        seed_of(cache_salt="x"),
        seed_of(multimodal=["x"]),
        seed_of("x", "x"),
        seed_of("xx"),
        seed_of(multimodal=["x", "x"]),
    }
    assert len(seeds) == 7
    assert seed_of() == 0


def test_zeros_of_different_lengths_differ():
    assert block_hashes(array([0] * 8), 4)[0] != block_hashes(array([0] * 8), 8)[0]


def test_random_blocks_do_not_collide():
    tokens = np.random.default_rng(0).integers(0, 2, size=16 * 50_000, dtype=np.uint32)
    found = {
        tuple(block): h
        for block, h in zip(tokens.reshape(-1, 16).tolist(), block_hashes(tokens, 16).tolist(), strict=True)
    }
    assert len(set(found.values())) == len(found)


def test_a_block_size_must_be_positive():
    with pytest.raises(ValueError, match="block_size is 0"):
        block_hashes(array([1]), 0)
