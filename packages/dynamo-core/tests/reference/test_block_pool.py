from __future__ import annotations

import numpy as np
import pytest

from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from dynamo.reference.block_pool import BlockPool, CachedBlock, CacheScope, block_hash

SIZE = 4
BASE = CacheScope()


def _chain(*blocks: int, scope: CacheScope = BASE) -> list[CachedBlock]:
    """A sequence whose i-th block repeats the i-th given token."""
    chain: list[CachedBlock] = []
    for token in blocks:
        ids = np.full(SIZE, token, np.int32)
        parent = chain[-1].name if chain else None
        chain.append(CachedBlock(block_hash(parent or scope.root(), ids), parent, ids, scope))
    return chain


def _compute(pool: BlockPool, chain: list[CachedBlock]) -> list[int]:
    """What a sequence does: reuse what is cached, allocate and publish the rest; it holds the blocks."""
    held = pool.match([cached.name for cached in chain])
    for cached in chain[len(held) :]:
        (block,) = pool.allocate(1)
        held.append(pool.publish(block, cached))
    return held


def test_match_reuses_the_longest_prefix():
    pool = BlockPool(8, SIZE)
    first = _compute(pool, _chain(1, 2, 3))
    pool.release(first)
    assert pool.match([cached.name for cached in _chain(1, 2, 9)]) == first[:2]
    assert pool.used == 2


def test_allocation_beyond_the_pool_changes_nothing():
    pool = BlockPool(3, SIZE)
    assert pool.allocate(4) is None
    assert pool.available == 3
    assert len(pool.allocate(3)) == 3
    assert pool.allocate(1) is None


def test_eviction_takes_leaves_of_the_least_recently_used_first():
    pool = BlockPool(4, SIZE)
    old, young = _chain(1, 2), _chain(3, 4)
    pool.release(_compute(pool, old))
    pool.release(_compute(pool, young))
    pool.take_events()
    pool.allocate(1)
    assert pool.take_events() == [BlockRemoved([old[1].name])]
    pool.allocate(2)
    assert pool.take_events() == [BlockRemoved([old[0].name, young[1].name])]


def test_a_hit_makes_a_prefix_young_again():
    pool = BlockPool(4, SIZE)
    first, second = _chain(1, 2), _chain(3, 4)
    pool.release(_compute(pool, first))
    pool.release(_compute(pool, second))
    pool.release(pool.match([cached.name for cached in first]))
    pool.take_events()
    pool.allocate(2)
    assert pool.take_events() == [BlockRemoved([second[1].name, second[0].name])]


def test_a_duplicate_is_swapped_for_the_cached_block():
    pool = BlockPool(4, SIZE)
    (cached,) = _chain(7)
    (mine,), (theirs,) = pool.allocate(1), pool.allocate(1)
    assert pool.publish(mine, cached) == mine
    assert pool.publish(theirs, cached) == mine
    assert pool.used == 1
    pool.release([mine])
    pool.release([mine])
    assert (pool.used, pool.evictable, pool.available) == (0, 1, 4)
    assert len(pool.take_events()) == 1


def test_consecutive_blocks_share_one_event():
    pool = BlockPool(8, SIZE)
    chain = _chain(1, 2, 3)
    _compute(pool, chain)
    (event,) = pool.take_events()
    assert event == BlockStored(
        block_hashes=[cached.name for cached in chain], token_ids=[1] * 4 + [2] * 4 + [3] * 4, block_size=4
    )
    _compute(pool, _chain(1, 5))
    assert pool.take_events() == [
        BlockStored([_chain(1, 5)[1].name], token_ids=[5] * 4, block_size=4, parent_hash=chain[0].name)
    ]


@pytest.mark.parametrize(
    "scope",
    [
        CacheScope(cache_salt="tenant"),
        CacheScope(lora="a", lora_fingerprint="x"),
        CacheScope("a", "y"),
        CacheScope("b", "x"),
    ],
)
def test_scopes_share_nothing_and_events_name_them(scope):
    pool = BlockPool(8, SIZE)
    _compute(pool, _chain(1))
    pool.take_events()
    assert pool.match([cached.name for cached in _chain(1, scope=scope)]) == []
    _compute(pool, _chain(1, scope=scope))
    (event,) = pool.take_events()
    assert (event.lora, event.cache_salt) == (scope.lora, scope.cache_salt)


def test_clear_waits_until_nothing_is_referenced():
    pool = BlockPool(4, SIZE)
    held = _compute(pool, _chain(1, 2))
    assert pool.clear() is False
    pool.release(held)
    pool.take_events()
    assert pool.clear() is True
    assert pool.take_events() == [AllBlocksCleared()]
    assert (pool.available, pool.evictable) == (4, 0)
    assert pool.match([cached.name for cached in _chain(1, 2)]) == []


def test_forgetting_an_adapter_keeps_everything_else():
    pool = BlockPool(8, SIZE)
    adapted, base = _chain(1, 2, scope=CacheScope("a", "x")), _chain(1, 2)
    pool.release(_compute(pool, adapted))
    pool.release(_compute(pool, base))
    pool.take_events()
    pool.forget_lora("a")
    (event,) = pool.take_events()
    assert set(event.block_hashes) == {cached.name for cached in adapted}
    assert pool.cached_names() == {cached.name for cached in base}
    assert pool.available == 8


def test_announce_repeats_the_content_parents_first():
    pool = BlockPool(8, SIZE)
    chain, fork = _chain(1, 2, 3), _chain(1, 9)
    pool.release(_compute(pool, chain))
    pool.release(_compute(pool, fork))
    pool.announce()
    cleared, *stored = pool.take_events()
    assert cleared == AllBlocksCleared()
    assert [name for event in stored for name in event.block_hashes] == [c.name for c in [*chain, fork[1]]]
