"""The mirror of one rank: events taken singly and together, whole and broken, mean the same."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dynamo.protocols.hashing import sequence_hashes
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, HashesRemoved
from dynamo.router.core.rank_mirror import RankMirror
from dynamo.testing.engine_cache import EngineCache

BLOCK = 4


def ours(tokens, size=BLOCK):
    return sequence_hashes(np.asarray(tokens, dtype=np.uint32), size).tolist()


def hashes_of(event):
    return np.frombuffer(event.hashes, dtype="<u8").tolist()


@pytest.mark.parametrize("together", [2, 7, 100])
def test_events_mean_the_same_singly_and_together(together):
    cache = EngineCache(random.Random(together), BLOCK, media=("device", "host"))
    events = [cache.step() for _ in range(2000)]
    singly, at_once = RankMirror(BLOCK), RankMirror(BLOCK)
    expected = [meaning for event in events for meaning in singly.translate([event])]
    got = []
    for start in range(0, len(events), together):
        got += at_once.translate(events[start : start + together])
    assert got == expected
    assert at_once.content() == singly.content()
    held = {(run.medium, each) for run in at_once.content() for each in hashes_of(run)}
    assert held == cache.content()


@pytest.mark.parametrize("blocks", [1, 12, 13, 300])
def test_a_run_of_any_length_goes_on_where_its_parent_ended(blocks):
    mirror, tokens = RankMirror(BLOCK), list(range(2 * blocks * BLOCK))
    half = blocks * BLOCK
    first = BlockStored(list(range(blocks)), tokens[:half], BLOCK)
    second = BlockStored(list(range(blocks, 2 * blocks)), tokens[half:], BLOCK, parent_hash=blocks - 1, medium="host")
    events = mirror.translate([first, second])
    assert [each for event in events for each in hashes_of(event)] == ours(tokens)
    assert (events[1].parent, events[1].medium, len(mirror)) == (ours(tokens)[blocks - 1], "host", 2 * blocks)


def test_sizes_of_blocks_may_differ_within_a_step():
    tokens = list(range(8))
    events = RankMirror(BLOCK).translate([BlockStored([1], tokens, 8), BlockStored([2, 3], tokens, BLOCK)])
    assert [hashes_of(event) for event in events] == [ours(tokens, 8), ours(tokens)]


def test_tokens_of_a_block_that_is_not_full_do_not_count():
    events = RankMirror(BLOCK).translate([BlockStored([1], [1, 2, 3, 4, 5], BLOCK), BlockStored([2], [6] * 4, BLOCK)])
    assert [hashes_of(event) for event in events] == [ours([1, 2, 3, 4]), ours([6] * 4)]


def test_a_parent_that_goes_between_two_events_of_a_step_is_missed():
    mirror = RankMirror(BLOCK)
    child = BlockStored([2], [2] * 4, BLOCK, parent_hash=1)
    events = mirror.translate([BlockStored([1], [1] * 4, BLOCK), child, BlockRemoved([2, 1]), child])
    assert [hashes_of(event) for event in events] == [ours([1] * 4), ours([1] * 4 + [2] * 4)[1:], hashes_of(events[2])]
    assert (isinstance(events[2], HashesRemoved), mirror.orphans, len(mirror)) == (True, 1, 0)


def test_a_hash_that_an_event_has_twice_names_its_last_content():
    mirror = RankMirror(BLOCK)
    removed, stored = mirror.translate([BlockStored([1, 1], [1] * 8, BLOCK)])
    assert (hashes_of(removed), hashes_of(stored)) == (ours([1] * 8)[:1], ours([1] * 8))
    (gone,) = mirror.translate([BlockRemoved([1, 1, 7], medium="device")])
    assert hashes_of(gone) == ours([1] * 8)[1:]


def test_nothing_is_left_after_a_clear():
    mirror = RankMirror(BLOCK)
    stored = BlockStored([1], [1] * 4, BLOCK)
    assert mirror.translate([stored, AllBlocksCleared(), BlockRemoved([1]), BlockRemoved([1], medium="tape")])[1:] == [
        AllBlocksCleared()
    ]
    assert (mirror.content(), len(mirror)) == ([], 0)


@pytest.mark.parametrize("token", [-1, 1 << 32])
def test_a_token_id_that_cannot_be_is_an_error_and_enters_nothing(token):
    mirror = RankMirror(BLOCK)
    with pytest.raises(OverflowError):
        mirror.translate([BlockStored([1], [1] * 4, BLOCK), BlockStored([2], [token] * 4, BLOCK)])
    assert len(mirror) == 0
