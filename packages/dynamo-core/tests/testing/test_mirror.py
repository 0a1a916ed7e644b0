"""The brute-force cache model sees every rule that events can break."""

from __future__ import annotations

import pytest

from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EngineKvEvents
from dynamo.testing.engine_conformance.mirror import KvMirror


def _mirror(*events, dp_rank: int = 0) -> KvMirror:
    mirror = KvMirror(block_size=2)
    mirror.apply(EngineKvEvents(list(events), dp_rank))
    return mirror


CHAIN = BlockStored([b"a", b"b"], [1, 2, 3, 4], 2)
CHILD = BlockStored([b"c"], [5, 6], 2, parent_hash=b"b")


def test_a_chain_is_put_together_over_events() -> None:
    mirror = _mirror(CHAIN, CHILD)
    assert mirror.problems == []
    assert mirror.count() == 3
    assert list(mirror.chains()) == [([1, 2, 3, 4, 5, 6], None, None)]


@pytest.mark.parametrize(
    ("tokens", "blocks"), [([1, 2, 3, 4, 5, 6], 3), ([1, 2, 3, 4, 9, 9], 2), ([1, 2, 3], 1), ([3, 4], 0), ([], 0)]
)
def test_the_prefix_of_a_prompt_is_counted_in_blocks(tokens: list[int], blocks: int) -> None:
    assert _mirror(CHAIN, CHILD).prefix_blocks(tokens) == blocks


def test_a_removed_block_hides_what_comes_behind_it() -> None:
    mirror = _mirror(CHAIN, CHILD, BlockRemoved([b"b"]))
    assert mirror.prefix_blocks([1, 2, 3, 4, 5, 6]) == 1
    assert list(mirror.chains()) == [([1, 2], None, None)]
    assert mirror.count() == 2
    assert mirror.removals == 1


def test_salts_adapters_ranks_and_media_are_kept_apart() -> None:
    salted = BlockStored([b"a"], [1, 2], 2, cache_salt="s", lora="l")
    mirror = _mirror(salted, BlockStored([b"a"], [1, 2], 2, medium="host", cache_salt="s", lora="l"))
    mirror.apply(EngineKvEvents([salted], dp_rank=1))
    assert mirror.problems == []
    assert mirror.prefix_blocks([1, 2]) == 0
    assert mirror.prefix_blocks([1, 2], salt="s", lora="l") == 1
    assert (mirror.count(), mirror.count("host")) == (2, 1)


def test_clearing_empties_one_rank() -> None:
    mirror = _mirror(CHAIN)
    mirror.apply(EngineKvEvents([CHAIN], dp_rank=1))
    mirror.apply(EngineKvEvents([AllBlocksCleared()], dp_rank=1))
    assert mirror.count() == 2


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([CHILD], "names parent b'b', which is not in the cache"),
        ([CHAIN, CHAIN], "which was already stored"),
        ([BlockRemoved([b"z"])], "BlockRemoved names block b'z'"),
        ([BlockStored([b"a"], [1], 2)], "1 hashes and 1 token ids; 2 ids are needed"),
        ([BlockStored([b"a"], [1, 2, 3], 3)], "block_size 3; start() said 2"),
    ],
)
def test_a_broken_rule_is_kept_in_words(events: list, problem: str) -> None:
    assert problem in _mirror(*events).problems[0]


def test_other_cache_groups_are_not_looked_at() -> None:
    mirror = _mirror(BlockStored([b"a"], [1, 2], 2, group=1), BlockRemoved([b"q"], group=1))
    assert (mirror.count(), mirror.problems) == (0, [])


def test_a_parent_that_is_its_own_child_does_not_loop() -> None:
    mirror = _mirror(
        BlockStored([b"a"], [1, 2], 2), BlockRemoved([b"a"]), BlockStored([b"a"], [1, 2], 2, parent_hash=b"a")
    )
    assert list(mirror.chains()) == []
