"""Only the first copy of a block is stored, and only the last one removed."""

from __future__ import annotations

from dynamo.protocols.kv_copies import CopyCounter
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EngineKvEvents


def stored(*hashes: int, parent: int | None = None, medium: str = "device") -> BlockStored:
    ids = [token for block in hashes for token in (block * 10, block * 10 + 1)]
    return BlockStored(list(hashes), ids, 2, parent_hash=parent, cache_salt="s", medium=medium)


def through(counter: CopyCounter, *events, rank: int = 0):
    return counter.first_and_last(EngineKvEvents(list(events), rank)).events


def test_a_second_copy_is_stored_and_removed_in_silence():
    counter = CopyCounter()
    assert through(counter, stored(1, 2)) == [stored(1, 2)]
    assert through(counter, stored(1, 2), BlockRemoved([2])) == []
    assert counter.blocks(0) == 2
    assert through(counter, BlockRemoved([2, 1]), BlockRemoved([1])) == [BlockRemoved([2]), BlockRemoved([1])]
    assert counter.blocks(0) == 0


def test_what_is_new_in_an_event_keeps_its_ids_and_its_parent():
    counter = CopyCounter()
    through(counter, stored(2, parent=1), stored(5, parent=4))
    assert through(counter, stored(1, 2, 3, 4, 5, 6)) == [stored(1), stored(3, 4, parent=2), stored(6, parent=5)]


def test_ranks_and_tiers_have_copies_of_their_own():
    counter = CopyCounter()
    assert through(counter, stored(1)) == through(counter, stored(1), rank=1) == [stored(1)]
    assert through(counter, stored(1, medium="host")) == [stored(1, medium="host")]
    assert through(counter, BlockRemoved([1], "host")) == [BlockRemoved([1], "host")]
    assert counter.blocks(0) == counter.blocks(1) == 1
    assert len(counter) == 2


def test_clearing_forgets_the_copies_of_a_rank():
    counter = CopyCounter()
    through(counter, stored(1), stored(1))
    through(counter, stored(1), rank=1)
    assert through(counter, AllBlocksCleared(), stored(1)) == [AllBlocksCleared(), stored(1)]
    assert through(counter, BlockRemoved([1])) == [BlockRemoved([1])]
    assert counter.blocks(1) == 1


def test_an_unknown_block_is_removed_as_it_was_said():
    assert through(CopyCounter(), BlockRemoved([9])) == [BlockRemoved([9])]
