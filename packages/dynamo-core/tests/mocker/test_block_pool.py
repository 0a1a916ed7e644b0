"""The books of a simulated rank's KV blocks."""

from __future__ import annotations

from dynamo.mocker.block_pool import BlockPool


def _filled(pool: BlockPool, names: list[int]) -> None:
    """Compute `names` and let go of them."""
    pool.acquire([], len(names))
    for name in names:
        pool.publish(name)
    pool.release(names, 0)


def test_released_blocks_stay_cached_until_they_are_needed() -> None:
    pool = BlockPool(4)
    _filled(pool, [1, 2, 3])
    assert (pool.used, pool.cached, pool.match([1, 2, 3, 4])) == (0, 3, 3)
    assert pool.acquire([], 1) == []
    assert pool.acquire([], 1) == [3]
    assert pool.match([1, 2, 3]) == 2


def test_leaves_are_evicted_before_their_parents_and_the_longest_unused_first() -> None:
    pool = BlockPool(6)
    _filled(pool, [1, 2, 3])
    _filled(pool, [7, 8, 9])
    pool.acquire([1], 0)
    pool.release([1], 0)
    assert pool.acquire([], 6) == [3, 2, 9, 8, 7, 1]


def test_what_is_held_is_never_evicted() -> None:
    pool = BlockPool(3)
    _filled(pool, [1, 2])
    pool.acquire([1, 2], 0)
    assert pool.fits((), 1)
    assert not pool.fits((), 2)
    assert pool.acquire([], 1) == []
    assert pool.match([1, 2]) == 2


def test_cached_blocks_that_will_be_shared_count_as_room_taken() -> None:
    pool = BlockPool(3)
    _filled(pool, [1, 2])
    assert pool.fits([1, 2], 1)
    assert not pool.fits([1, 2], 2)
    assert pool.fits((), 3)


def test_a_block_that_two_computed_is_kept_once() -> None:
    pool = BlockPool(4)
    pool.acquire([], 2)
    assert pool.publish(5)
    assert not pool.publish(5)
    assert pool.used == 1
    pool.release([5], 0)
    assert pool.used == 1
    pool.release([5], 0)
    assert (pool.used, pool.cached) == (0, 1)


def test_a_block_that_became_cached_meanwhile_is_taken_from_there() -> None:
    pool = BlockPool(4)
    _filled(pool, [5])
    pool.acquire([], 1)
    assert not pool.publish(5)
    assert (pool.used, pool.cached) == (1, 0)
