"""Blocks that running requests hold: as a table of counts per block would have it."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from dynamo.router.core.held_prefixes import HeldPrefixes

#: Blocks that prompts go on with: around the first steps between marks, and around the wider ones of long prompts.
_SHORT = (0, 1, 5, 63, 64, 65, 200)
_LONG = (0, 1, 63, 448, 511, 512, 513, 3583, 3584, 3585)


def _prompts(rng: random.Random, number: int, lengths: tuple[int, ...]) -> list[list[int]]:
    """Prompts that branch off each other at any block; blocks are named by all that comes before them."""
    prompts: list[list[int]] = []
    for name in range(number):
        base = rng.choice(prompts) if prompts and rng.random() < 0.9 else []
        kept = base[: rng.randrange(len(base) + 1)]
        new = rng.choice(lengths)
        prompts.append([*kept, *(hash((name, place)) for place in range(len(kept), len(kept) + new))])
    return prompts


def _shared(prompt: list[int], counts: Counter[int]) -> int:
    shared = 0
    while shared < len(prompt) and counts[prompt[shared]]:
        shared += 1
    return shared


@pytest.mark.parametrize(
    ("seed", "lengths", "steps"),
    [*((seed, _SHORT, 300) for seed in range(30)), *((seed, _LONG, 60) for seed in (1, 2))],
)
def test_held_blocks_are_those_of_a_table_of_counts(seed, lengths, steps):
    rng = random.Random(seed)
    held, counts = HeldPrefixes(), Counter()
    prompts = _prompts(rng, 40, lengths)
    running = []
    for _ in range(steps):
        if running and rng.random() < 0.45:
            run, prompt = running.pop(rng.randrange(len(running)))
            held.remove(run)
            counts.subtract(prompt)
        else:
            prompt = list(rng.choice(prompts))
            running.append((held.add(prompt), prompt))
            counts.update(prompt)
        counts = +counts
        assert len(held) == len(counts)
        asked = rng.choice(prompts)
        expected = _shared(asked, counts)
        likely = rng.choice((0, expected, expected + 1, max(0, expected - 1), rng.randrange(len(asked) + 2)))
        assert held.shared(asked, likely) == expected
    for run, _ in running:
        held.remove(run)
    assert len(held) == 0
    assert all(held.shared(prompt) == 0 for prompt in prompts)


def test_a_prompt_without_blocks_holds_nothing():
    held = HeldPrefixes()
    run = held.add([])
    assert (len(held), held.shared([])) == (0, 0)
    held.remove(run)
    assert len(held) == 0


@pytest.mark.parametrize("seed", range(30))
def test_hashes_that_collide_do_no_harm(seed):
    rng = random.Random(seed)
    held, running = HeldPrefixes(), []
    for _ in range(200):
        if running and rng.random() < 0.45:
            held.remove(running.pop(rng.randrange(len(running))))
        else:
            # Few names in any order: the same one in many places, behind all others.
            running.append(held.add([rng.randrange(8) for _ in range(rng.choice((1, 3, 70, 130)))]))
        asked = [rng.randrange(8) for _ in range(100)]
        assert 0 <= held.shared(asked, rng.randrange(101)) <= len(asked)
        assert len(held) >= 0
    for run in running:
        held.remove(run)
    assert len(held) == 0
    assert held.shared(list(range(8))) == 0
