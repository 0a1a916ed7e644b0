"""Engines' events in the project's words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EngineKvEvents
from dynamo.protocols.kv_translation import Translator
from dynamo.protocols.kv_wire import Cleared, Drops, Removed, Stored, decode_batch
from dynamo.worker.kv_publisher import KvEventPublisher

DATA = Path(__file__).parent / "data"


@pytest.fixture
def drops() -> Drops:
    return Drops()


def stored(*hashes: int, parent: int | None = None, **fields) -> Stored:
    return Stored(list(hashes), parent, list(range(2 * len(hashes))), 2, **{"medium": "GPU", **fields})


@pytest.mark.parametrize(
    ("medium", "tier"),
    [
        ("GPU", "device"),
        ("CPU", "host"),
        ("CPU_PINNED", "host"),
        ("STORAGE", "disk"),
        ("DISK", "disk"),
        (None, "device"),
    ],
)
def test_tiers(drops, medium, tier):
    events = Translator(drops).translate([stored(1, medium=medium), Removed([1], medium), Cleared()])
    assert [getattr(event, "medium", None) for event in events] == [tier, tier, None]
    assert [type(event) for event in events] == [BlockStored, BlockRemoved, AllBlocksCleared]


def test_an_unknown_medium_is_left_out(drops):
    assert Translator(drops).translate([stored(1, medium="TAPE"), Removed([1], "TAPE")]) == []
    assert drops.counts["an unknown medium"] == 2


def test_only_the_full_attention_group_counts(drops):
    translator = Translator(drops)
    events = translator.translate(
        [
            stored(1, group_idx=0, kv_cache_spec_kind="sliding_window"),
            stored(2, group_idx=1, kv_cache_spec_kind="full_attention"),
            stored(3, group_idx=2, kv_cache_spec_kind="full_attention"),
            stored(4, group_idx=3, kv_cache_spec_kind="mamba"),
            Removed([2], "GPU", 0),
            Removed([2], "GPU", 1),
        ]
    )
    assert [(type(event), event.block_hashes, event.group) for event in events] == [
        (BlockStored, [2], 1),
        (BlockRemoved, [2], 1),
    ]


def test_blocks_of_other_machines_are_not_ours(drops):
    assert Translator(drops).translate([stored(1, medium="CPU", locality="REMOTE")]) == []


@pytest.mark.parametrize(
    ("lora", "keys", "blocks", "salt"),
    [
        (None, [None, None], 2, None),
        (None, [["s"], None], 2, "s"),
        ("a", [["a"], ["a"]], 2, None),
        ("a", [["a", "s"], ["a"]], 2, "s"),
        (None, [None, [["image-7", 3]]], 1, None),
        (None, [["s"], [["image-7", 0]]], 1, "s"),
        (None, [[b"embedding"], None], 0, None),
        (None, [["s", b"embedding"], None], 0, None),
    ],
)
def test_extra_keys(drops, lora, keys, blocks, salt):
    events = Translator(drops).translate([stored(1, 2, lora_name=lora, extra_keys=keys)])
    if not blocks:
        assert events == []
        return
    (event,) = events
    assert (event.block_hashes, event.token_ids) == ([1, 2][:blocks], list(range(2 * blocks)))
    assert (event.lora, event.cache_salt) == (lora, salt)
    assert drops.counts.total() == (blocks < 2)


def test_a_salt_stands_at_the_start_of_a_sequence_only(drops):
    events = Translator(drops).translate([stored(1, parent=9, extra_keys=[["not-a-salt"]])])
    assert events == []


def test_an_adapter_that_only_a_number_names_keeps_its_blocks_apart(drops):
    translator = Translator(drops)
    assert [event.lora for event in translator.translate([stored(1, lora_id=4), stored(2)])] == ["4", None]
    assert translator.translate([stored(3, lora_id=4, lora_name="a")])[0].lora == "a"


def test_a_salt_may_be_named_by_itself(drops):
    (event,) = Translator(drops).translate([stored(1, parent=9, cache_salt="tenant")])
    assert event.cache_salt == "tenant"


def published_content(form: str) -> set[bytes]:
    """What the worker's mirror holds of a recording, in our hashes, before the engine evicts."""
    drops = Drops()
    translator = Translator(drops)
    publisher = KvEventPublisher(1, "demo", 32, lambda _payload: None)
    content: set[bytes] = set()
    for entry in json.loads((DATA / f"kv_events_{form}.json").read_text()):
        batch = decode_batch(bytes.fromhex(entry["hex"]), drops)
        publisher.take(EngineKvEvents(translator.translate(batch.events)))
        if entry["tag"] == "adapted and salted":
            content = {run.hashes for run in publisher.mirror(0).content()}
    assert publisher.mirror(0).orphans == 0
    assert not drops.counts
    assert len(publisher.mirror(0)) == 1, "one block of 40 prompt tokens after the clear"
    return content


def test_hashes_of_a_real_engine_become_ours_whatever_their_form():
    """Both recordings are of the same requests, so what is published of them must be equal."""
    content = published_content("int")
    assert len(content) == 4, "prompts that differ in tokens, salt or adapter share no block"
    assert content == published_content("bytes")
