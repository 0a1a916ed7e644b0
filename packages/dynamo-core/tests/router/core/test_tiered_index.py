"""Each tier's view equals a brute-force model; offloading keeps a prefix, removing from all tiers ends it."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.router.core.tiered_index import TieredIndex

DEVICE, HOST, DISK = 0, 1, 2
CHAIN = list(range(1, 9))


def depths(index, chain, worker=0):
    return tuple(found.get(worker, 0) for found in index.match(chain))


def test_without_lower_tiers_all_views_are_the_devices():
    index = TieredIndex()
    index.store(0, CHAIN)
    match = index.match(CHAIN)
    assert match.device is match.host is match.disk
    assert len(index) == 8


def test_a_prefix_goes_on_in_lower_tiers():
    index = TieredIndex()
    index.store(0, CHAIN[:3])
    index.store(0, CHAIN[3:5], 3, HOST)
    index.store(0, CHAIN[5:], 5, DISK)
    assert depths(index, CHAIN) == (3, 5, 8)
    assert len(index) == 8


def test_what_is_offloaded_before_it_is_evicted_stays_reachable():
    index = TieredIndex()
    index.store(0, CHAIN)
    index.store(0, CHAIN[4:], 4, HOST)
    index.remove(0, CHAIN[4:])
    assert depths(index, CHAIN) == (4, 8, 8)
    index.remove(0, CHAIN[6:], HOST)
    assert depths(index, CHAIN) == (4, 6, 6)
    index.store(0, CHAIN[4:6], 4)
    index.remove(0, CHAIN[4:6], HOST)
    assert depths(index, CHAIN) == (6, 6, 6)


def test_other_workers_keep_theirs():
    index = TieredIndex()
    index.store(1, CHAIN)
    index.store(0, CHAIN[:2], None, HOST)
    assert depths(index, CHAIN, 1) == (8, 8, 8)
    index.remove(1, CHAIN[4:])
    assert depths(index, CHAIN, 1) == (4, 4, 4)
    index.clear(0)
    assert depths(index, CHAIN) == (0, 0, 0)
    assert depths(index, CHAIN, 1) == (4, 4, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_random_tiers_agree_with_the_model(seed):
    rng = random.Random(seed)
    index = TieredIndex()
    held = {(worker, tier): set() for worker in range(2) for tier in range(3)}
    for _ in range(80):
        worker, tier, start = rng.randrange(2), rng.randrange(3), rng.randrange(8)
        if rng.random() < 0.6:
            blocks = CHAIN[start : rng.randint(start + 1, 8)]
            index.store(worker, blocks, CHAIN[start - 1] if start else None, tier)
            held[worker, tier].update(blocks)
        else:
            index.remove(worker, [CHAIN[start]], tier)
            held[worker, tier].discard(CHAIN[start])
        for each in range(2):
            expected = []
            for level in range(3):
                union = set().union(*(held[each, t] for t in range(level + 1)))
                expected.append(next((n for n, block in enumerate(CHAIN) if block not in union), 8))
            assert depths(index, CHAIN, each) == tuple(expected)
