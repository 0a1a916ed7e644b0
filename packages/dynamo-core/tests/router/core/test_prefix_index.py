"""The prefix index equals a brute-force model under random events, and forgets what it is told to forget."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.router.core.prefix_index import PrefixIndex


class Model:
    """Stored blocks per worker, with their parents; a block shows when its whole chain is stored."""

    def __init__(self):
        self.stored = {}
        self.parents = {}

    def store(self, key, hashes, parent):
        for h in hashes:
            self.parents[h] = parent
            self.stored.setdefault(key, set()).add(h)
            parent = h

    def remove(self, key, hashes):
        self.stored.get(key, set()).difference_update(hashes)

    def shows(self, key, h):
        while h is not None:
            if h not in self.stored.get(key, ()):
                return False
            h = self.parents[h]
        return True

    def match(self, chain):
        found = {}
        for key in self.stored:
            blocks = 0
            while blocks < len(chain) and self.shows(key, chain[blocks]):
                blocks += 1
            if blocks:
                found[key] = blocks
        return found


def chains(rng, count, depth):
    """Random prefixes: a tree of blocks given as root-to-leaf chains."""
    made = [[]]
    number = 0
    for _ in range(count):
        base = rng.choice(made)
        chain = base[: rng.randint(0, len(base))]
        while len(chain) < depth and (rng.random() < 0.8 or not chain):
            number += 1
            chain = [*chain, number]
        made.append(chain)
    return [chain for chain in made if chain]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_random_events_agree_with_the_model(seed):
    rng = random.Random(seed)
    tree = chains(rng, 12, 10)
    keys = range(4)
    index, model = PrefixIndex(), Model()
    for _ in range(120):
        key, chain = rng.choice(keys), rng.choice(tree)
        kind = rng.random()
        if kind < 0.55:
            start = rng.randrange(len(chain))
            end = rng.randint(start + 1, len(chain))
            parent = chain[start - 1] if start else None
            index.store(key, chain[start:end], parent)
            model.store(key, chain[start:end], parent)
        elif kind < 0.93:
            gone = rng.sample(chain, rng.randint(1, min(3, len(chain))))
            index.remove(key, gone)
            model.remove(key, gone)
        else:
            index.clear(key)
            model.stored.pop(key, None)
        probe = rng.choice(tree)
        assert index.match(probe) == model.match(probe)
    for key in keys:
        shown = {h for chain in tree for h in chain if model.shows(key, h)}
        assert index.blocks_of(key) == len(shown)
    assert len(index) == len({h for chain in tree for h in chain if any(model.shows(key, h) for key in keys)})


def test_a_hole_hides_what_hangs_below_and_filling_it_shows_it_again():
    """With block 10 of 100 gone, a worker holds ten blocks of the prefix, not a hundred."""
    index, chain = PrefixIndex(), list(range(1, 101))
    index.store(1, chain)
    index.remove(1, [chain[10]])
    assert index.match(chain) == {1: 10}
    index.store(1, [chain[10]], chain[9])
    assert index.match(chain) == {1: 100}


def test_a_block_of_an_unknown_parent_waits_for_it():
    index = PrefixIndex()
    index.store(1, [3, 4], 2)
    assert index.match([1, 2, 3, 4]) == {}
    index.store(1, [1, 2])
    assert index.match([1, 2, 3, 4]) == {1: 4}


def test_workers_hold_different_lengths_of_one_prefix():
    index, chain = PrefixIndex(), list(range(1, 9))
    index.store(0, chain)
    index.store(600, chain[:3])
    index.store(2, chain[:5])
    assert index.match(chain) == {0: 8, 600: 3, 2: 5}
    assert index.match(chain[:4]) == {0: 4, 600: 3, 2: 4}
    assert index.match([*chain, 99]) == {0: 8, 600: 3, 2: 5}
    assert index.match([99]) == {}
    assert index.match([]) == {}


def test_unknown_removals_are_counted_and_harmless():
    index = PrefixIndex()
    assert index.remove(1, [1, 2]) == 2
    index.store(1, [1, 2, 3])
    assert index.remove(2, [1]) == 1
    assert index.remove(1, [3, 77]) == 1
    assert index.match([1, 2, 3]) == {1: 2}


def test_a_cleared_worker_leaves_nothing_of_its_own():
    index, shared = PrefixIndex(), [1, 2, 3]
    for number in range(200):
        index.store(number, [*shared, 1000 + number])
        index.store(number, [77], 76)
    for number in range(1, 200):
        index.clear(number)
        assert index.blocks_of(number) == index.hidden_blocks_of(number) == 0
    assert len(index) == 4
    assert index.match([*shared, 1000]) == {0: 4}
    index.clear(0)
    assert len(index) == 0
    assert index.match(shared) == {}


def test_a_hash_under_another_parent_is_refused_and_changes_nothing():
    """Sequence hashes name what is before them, so this is a lie or a broken worker."""
    index = PrefixIndex()
    index.store(0, [1, 2, 3])
    index.store(1, [9, 2, 3])
    assert index.conflicts == 2
    index.store(1, [3], 9)
    index.store(1, [1, 1, 2])
    assert index.match([1, 2, 3]) == {0: 3, 1: 1}
    assert index.match([9]) == {1: 1}


def test_blocks_said_twice_count_once():
    index = PrefixIndex()
    index.store(0, [1, 2, 2, 3])
    index.store(0, [1, 2, 3])
    assert index.blocks_of(0) == 3
    assert index.remove(0, [3, 2, 1]) == 0
    assert len(index) == index.blocks_of(0) == 0


def test_hidden_blocks_are_bounded():
    index = PrefixIndex()
    index.store(0, list(range(2, 100_000)), 1)
    assert index.hidden_blocks_of(0) == 1 << 16
    assert len(index) == 0


def test_what_was_stored_again_is_evicted_last():
    index = PrefixIndex(max_blocks=320)
    old = list(range(1, 11))
    index.store(0, old)
    for number in range(1, 100):
        index.store(0, old)
        index.store(0, list(range(number * 1000, number * 1000 + 10)))
    assert index.match(old) == {0: 10}
    assert index.match([1000]) == {}


@pytest.mark.parametrize("limit", [10, 100])
def test_memory_is_bounded_and_what_is_left_is_true(limit):
    rng = random.Random(1)
    index, model = PrefixIndex(max_blocks=limit), Model()
    tree = chains(rng, 300, 12)
    for chain in tree:
        key = rng.randrange(3)
        index.store(key, chain)
        model.store(key, chain, None)
        assert len(index) <= limit
    assert index.evicted_blocks > 0
    for chain in tree:
        for key, blocks in index.match(chain).items():
            assert blocks <= model.match(chain)[key]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9))
def test_long_prefixes_of_many_runs_agree_with_the_model(seed):
    """Deep enough that the match leaps, over runs that were cut, branched off and dropped."""
    rng = random.Random(seed)
    tree = chains(rng, 6, 90)
    index, model = PrefixIndex(), Model()
    for _ in range(60):
        key, chain = rng.randrange(5), rng.choice(tree)
        if rng.random() < 0.8:
            end = rng.randint(1, len(chain))
            step = rng.choice((1, 3, 16))
            for start in range(0, end, step):
                stored = chain[start : min(end, start + step)]
                index.store(key, stored, chain[start - 1] if start else None)
            model.store(key, chain[:end], None)
        else:
            gone = rng.sample(chain, min(2, len(chain)))
            index.remove(key, gone)
            model.remove(key, gone)
        probe = rng.choice(tree) + [-1] * rng.randrange(40)
        assert index.match(probe) == model.match(probe)


class CountedHash(int):
    """A sequence hash that counts how often it was looked up."""

    looked_up = 0

    def __hash__(self):
        CountedHash.looked_up += 1
        return super().__hash__()


def test_a_match_looks_at_few_blocks():
    index, chain = PrefixIndex(), [CountedHash(number) for number in range(1, 4097)]
    depths = {worker: 4096 >> worker for worker in range(6)}
    for worker, depth in depths.items():
        for start in range(0, depth, 4):
            index.store(worker, chain[start : start + 4], chain[start - 1] if start else None)
    unknown = [CountedHash(-number) for number in range(1, 1000)]
    CountedHash.looked_up = 0
    assert index.match(chain + unknown) == depths
    assert CountedHash.looked_up < 100


def test_a_block_that_is_known_at_another_depth_is_not_believed():
    """Its worker lies or is broken; the others keep what they have of other prompts."""
    index = PrefixIndex()
    index.store(0, [1, 2, 3])
    index.store(1, [9, 8, 7, 6, 5])
    assert index.match([1, 5]) == index.match([1, 2, 3, 9, 9, 6]) == {}
    assert index.match([1, 2, 3]) == {0: 3}
