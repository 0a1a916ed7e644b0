"""What a worker is believed to hold: bounded in time and number, and always whole prefixes."""

from __future__ import annotations

import random

from dynamo.router.core.routed_blocks import RoutedBlocks


def test_beliefs_end_from_the_end_of_the_prompt():
    routed = RoutedBlocks(10.0, 0)
    assert routed.use([1, 2, 3], 0.0) == []
    routed.use([1, 2], 5.0)
    assert routed.expire(9.9) == []
    assert routed.expire(10.0) == [3]
    assert routed.expire(15.0) == [2, 1]
    assert len(routed) == 0


def test_more_than_the_worker_has_is_dropped_longest_unused_first():
    routed = RoutedBlocks(1e9, 4)
    routed.use([1, 2, 3], 0.0)
    assert routed.use([9, 10], 1.0) == [3]
    assert routed.use([1, 2, 11], 2.0) == [10]


def test_a_prompt_longer_than_the_cache_keeps_its_beginning():
    routed = RoutedBlocks(1e9, 2)
    assert routed.use([1, 2, 3, 4], 0.0) == [4, 3]


def test_what_is_left_is_always_whole_prefixes():
    rng = random.Random(7)
    routed, held = RoutedBlocks(20.0, 30), set()
    chains = [[tree * 100 + depth for depth in range(10)] for tree in range(12)]
    for now in range(2000):
        chain = rng.choice(chains)[: rng.randint(1, 10)]
        held |= set(chain)
        held -= set(routed.use(chain, float(now)))
        held -= set(routed.expire(float(now)))
        assert len(held) == len(routed) <= 30
        for block in held:
            assert block % 100 == 0 or block - 1 in held
