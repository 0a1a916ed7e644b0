"""The prefix index equals a brute-force model under random events, and forgets what it is told to forget."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.router.core.prefix_index import PrefixIndex


def worker(number, rank=0):
    return WorkerKey(InstanceId(number), rank)


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
    keys = [worker(n) for n in range(4)]
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
        elif kind < 0.97:
            index.clear(key)
            model.stored[key] = set()
        else:
            index.remove_worker(key)
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
    index.store(worker(1), chain)
    index.remove(worker(1), [chain[10]])
    assert index.match(chain) == {worker(1): 10}
    index.store(worker(1), [chain[10]], chain[9])
    assert index.match(chain) == {worker(1): 100}


def test_a_block_of_an_unknown_parent_waits_for_it():
    index = PrefixIndex()
    index.store(worker(1), [3, 4], 2)
    assert index.match([1, 2, 3, 4]) == {}
    index.store(worker(1), [1, 2])
    assert index.match([1, 2, 3, 4]) == {worker(1): 4}


def test_workers_and_ranks_are_told_apart():
    index, chain = PrefixIndex(), list(range(1, 9))
    index.store(worker(1, 0), chain)
    index.store(worker(1, 1), chain[:3])
    index.store(worker(2), chain[:5])
    assert index.match(chain) == {worker(1, 0): 8, worker(1, 1): 3, worker(2): 5}
    assert index.match([99]) == {}
    assert index.match([]) == {}


def test_unknown_removals_are_counted_and_harmless():
    index = PrefixIndex()
    assert index.remove(worker(1), [1, 2]) == 2
    index.store(worker(1), [1, 2, 3])
    assert index.remove(worker(2), [1]) == 1
    assert index.remove(worker(1), [3, 77]) == 1
    assert index.match([1, 2, 3]) == {worker(1): 2}


def test_a_removed_worker_leaves_nothing_and_its_place_is_used_again():
    index = PrefixIndex()
    for number in range(200):
        index.store(worker(number), [number * 10 + n for n in range(1, 4)])
        index.remove_worker(worker(number))
    assert len(index) == 0
    assert index.workers() == []
    index.store(worker(7), [1])
    index.store(worker(8), [1])
    assert index.match([1]) == {worker(7): 1, worker(8): 1}


@pytest.mark.parametrize("limit", [10, 100])
def test_memory_is_bounded_and_what_is_left_is_true(limit):
    rng = random.Random(1)
    index, model = PrefixIndex(max_blocks=limit), Model()
    tree = chains(rng, 300, 12)
    for chain in tree:
        key = worker(rng.randrange(3))
        index.store(key, chain)
        model.store(key, chain, None)
        assert len(index) <= limit
    assert index.evicted_blocks > 0
    for chain in tree:
        for key, blocks in index.match(chain).items():
            assert blocks <= model.match(chain)[key]
