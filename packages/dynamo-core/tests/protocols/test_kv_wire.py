"""What real engines sent, both forms of an event, and bytes that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynamo.protocols.kv_translation import Translator
from dynamo.protocols.kv_wire import Cleared, Drops, Removed, Stored, decode_batch

DATA = Path(__file__).parent / "data"
encode = msgspec.msgpack.encode


def recorded(form: str) -> list[tuple[str, bytes]]:
    entries = json.loads((DATA / f"kv_events_{form}.json").read_text())
    return [(entry["tag"], bytes.fromhex(entry["hex"])) for entry in entries]


def events_of(payload: bytes) -> list:
    drops = Drops()
    batch = decode_batch(payload, drops)
    assert batch is not None
    assert not drops.counts
    return batch.events


@pytest.mark.parametrize("form", ["int", "bytes"])
def test_a_real_engine_is_read_without_a_drop(form):
    steps: dict[str, list] = {}
    for tag, payload in recorded(form):
        steps.setdefault(tag, []).extend(events_of(payload))
    kind = int if form == "int" else bytes

    first = steps["stored"][0]
    assert isinstance(first, Stored)
    assert [type(block_hash) for block_hash in first.block_hashes] == [kind] * 3
    assert len(first.token_ids) == 3 * first.block_size == 96
    assert (first.parent_block_hash, first.medium, first.kv_cache_spec_kind) == (None, "GPU", "full_attention")

    assert steps["continued"][0].parent_block_hash == first.block_hashes[-1]
    assert steps["salted"][0].extra_keys == [["tenant-1"], None]
    assert steps["adapted"][0].lora_name == "adapter-a"
    assert steps["adapted and salted"][-1].extra_keys == [["adapter-a", "tenant-2"], ["adapter-a"]]
    removed = [event for event in steps["evicting"] if isinstance(event, Removed)]
    assert removed
    assert {block for event in removed for block in event.block_hashes} & set(first.block_hashes)
    assert isinstance(steps["cleared"][0], Cleared)
    assert isinstance(steps["cleared"][1], Stored)


@pytest.mark.parametrize("form", ["int", "bytes"])
def test_the_same_events_as_arrays_mean_the_same(form):
    for _, payload in recorded(form):
        timestamp, events, rank = msgspec.msgpack.decode(payload)
        arrays = [[event.pop("type"), *event.values()] for event in events]
        for maps, array in zip(events_of(payload), events_of(encode([timestamp, arrays, rank])), strict=True):
            assert {field: getattr(array, field) for field in array.__struct_fields__} == {
                field: getattr(maps, field) for field in maps.__struct_fields__
            }


def test_short_arrays_of_early_versions():
    stored, removed, cleared = events_of(
        encode([1.5, [["BlockStored", [-5], None, [1, 2], 2, None], ["BlockRemoved", [-5]], ["AllBlocksCleared"]]])
    )
    assert (stored.block_hashes, stored.medium, stored.lora_name) == ([-5], None, None)
    assert removed.medium is None
    assert isinstance(cleared, Cleared)


def test_fields_of_later_versions_are_ignored():
    new = {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "reason": "age"}
    assert events_of(encode([1.0, [new, ["BlockRemoved", [1], "GPU", 0, None, None, "age"]], 0, "more"]))


STORED = {"type": "BlockStored", "block_hashes": [1, 2], "parent_block_hash": None, "token_ids": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    "event",
    [
        {**STORED, "block_size": 3},
        {**STORED, "block_size": 0},
        {**STORED, "block_size": 2, "extra_keys": [None]},
        {**STORED, "block_size": 2, "token_ids": [1, 2, 3, 2**32]},
        {**STORED, "block_size": 2, "token_ids": [1, 2, 3, -1]},
        {**STORED, "block_size": 2, "block_hashes": ["1", "2"]},
        {**STORED, "block_size": 2, "block_hashes": "no"},
        {"type": "BlockMoved", "block_hashes": [1]},
        ["BlockStored", [1]],
        [],
        {},
        7,
        None,
    ],
)
def test_an_event_that_is_wrong_does_not_take_the_others_with_it(event):
    drops = Drops()
    batch = decode_batch(encode([1.0, [["BlockRemoved", [9]], event, {"type": "AllBlocksCleared"}], 0]), drops)
    assert len(batch.events) == 2
    assert drops.counts.total() == 1


def test_offloaded_blocks_without_token_ids_are_counted():
    """vLLM's offloading connector names blocks whose tokens it does not know."""
    drops = Drops()
    placeholder = {**STORED, "block_hashes": [1], "token_ids": [], "block_size": 0, "medium": "CPU"}
    assert decode_batch(encode([1.0, [placeholder], 0]), drops).events == []
    assert drops.counts.total() == 1


@given(st.binary(max_size=300))
@example(b"\x93\xcb" + bytes(8) + b"\x91" * 5000)
@example(b"\x92\x01\xdd\xff\xff\xff\xff")
@example(b"")
@settings(max_examples=300)
def test_any_bytes_are_a_counted_drop_at_worst(payload):
    drops = Drops()
    batch = decode_batch(payload, drops)
    assert batch is not None or drops.counts.total() == 1


@given(st.data())
@settings(max_examples=200)
def test_damaged_messages_of_a_real_engine_never_raise(data):
    payload = bytearray(data.draw(st.sampled_from([payload for _, payload in recorded("int")])))
    for _ in range(data.draw(st.integers(1, 6))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    drops = Drops()
    batch = decode_batch(bytes(payload), drops)
    if batch is not None:
        Translator(drops).translate(batch.events)
    else:
        assert drops.counts.total() == 1


def test_drops_are_logged_ever_more_rarely(caplog):
    drops = Drops()
    for _ in range(150):
        drops.add("a test", "this")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"KV events dropped so far because of a test: {count} (this)" for count in (1, 10, 100)]


def test_the_log_names_the_engine_where_there_are_several(caplog):
    Drops("tcp://gpu-0:5557").add("a test")
    assert "KV events of tcp://gpu-0:5557 dropped so far because of a test: 1" in caplog.text
