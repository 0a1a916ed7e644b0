"""RecordView on a clock of the test: when a missing key is believed, and what a key may hold."""

import logging

import msgspec
import pytest

from dynamo.runtime.discovery.etcd_records import RecordDecoder, RecordView, namespace_prefix, record_key
from dynamo.runtime.etcd.watch import Change

SETTLE, STALE = 10.0, 5.0


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def view(clock):
    return RecordView(RecordDecoder(), settle_seconds=SETTLE, stale_seconds=STALE, clock=clock)


def values(*records):
    return {record_key(r): msgspec.json.encode(r) for r in records}


def ids(view):
    return sorted(key.instance_id for key in view.hub.records)


def deleted(record):
    return Change(record_key(record), None)


def put(record):
    return Change(record_key(record), msgspec.json.encode(record))


def test_keys_and_prefixes(record):
    key = record_key(record(0xAB, namespace="a"))
    assert key == b"/dynamo/v1/instances/a/worker/generate/000000000000ab"
    assert key.startswith(namespace_prefix("a"))
    assert key.startswith(namespace_prefix(None))
    assert not record_key(record(1, namespace="ab")).startswith(namespace_prefix("a"))


def test_a_deletion_while_etcd_answers_counts_at_once(view, clock, record):
    view.replace(values(record(1), record(2)))
    clock.now += STALE
    view.apply([])
    clock.now += STALE
    view.apply([deleted(record(1))])
    assert ids(view) == [2]
    assert view.settling() == []


def test_what_is_missing_after_an_interruption_stays_until_it_is_settled(view, clock, record):
    view.replace(values(record(1), record(2)))
    view.replace(values(record(2)))
    for _ in range(3):
        clock.now += SETTLE / 4
        view.apply([])
    assert ids(view) == [1, 2]
    assert [r.instance_id for r in view.settling()] == [1]
    clock.now += SETTLE / 4
    view.apply([])
    assert ids(view) == [2]
    assert view.settling() == []


def test_who_registers_again_while_it_settles_was_never_away(view, clock, record):
    view.replace(values(record(1, metadata={"v": "1"})))
    view.replace({})
    view.apply([put(record(1, metadata={"v": "2"}))])
    clock.now += SETTLE
    view.apply([])
    assert [r.metadata for r in view.hub.records.values()] == [{"v": "2"}]


def test_deletions_after_a_silence_are_believed_late(view, clock, record):
    """etcd hung for longer than the leases: it goes on with the deletion of all of them."""
    view.replace(values(record(1), record(2)))
    clock.now += STALE + 0.1
    view.apply([])
    view.apply([deleted(record(1)), deleted(record(2))])
    assert ids(view) == [1, 2]
    view.apply([put(record(2))])
    clock.now += SETTLE / 2
    view.apply([])
    clock.now += SETTLE / 2
    view.apply([])
    assert ids(view) == [2]


def test_the_first_reading_has_nothing_to_settle(view, clock, record):
    assert not view.known
    view.replace({})
    assert view.known
    view.apply([put(record(1))])
    view.apply([deleted(record(1))])
    assert ids(view) == []


def test_a_deletion_of_the_unknown_is_nothing(view, record):
    view.replace({})
    view.apply([deleted(record(1)), Change(b"/elsewhere", None)])
    assert ids(view) == []


def hostile(record):
    key, good = next(iter(values(record(1)).items()))
    return {
        "empty": (key, b""),
        "no JSON": (key, b"{"),
        "pickle": (key, b"\x80\x04\x95\x00."),
        "wrong type": (key, b'{"namespace": 1}'),
        "not a map": (key, b"[]"),
        "deep": (key, b"[" * 100_000),
        "deep where it is skipped": (key, b'{"unknown": ' + b"[" * 100_000),
        "not UTF-8": (key, b'{"namespace": "\xff"}'),
        "too large": (key, b" " * (1024 * 1024 + 1)),
        "another key's": (record_key(record(2)), good),
        "no name": (key, good.replace(b'"worker"', b'"../worker"')),
        "id out of range": (key, good.replace(b'"instance_id":1', b'"instance_id":-1')),
        "key not UTF-8": (b"/dynamo/v1/instances/\xff", good),
    }


KINDS = 13


@pytest.mark.parametrize("index", range(KINDS))
def test_hostile_values_are_ignored_with_one_warning(view, record, caplog, index):
    cases = hostile(record)
    assert len(cases) == KINDS
    key, value = list(cases.values())[index]
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            view.replace({key: value, **values(record(9))})
    assert ids(view) == [9]
    assert len(caplog.messages) == 1
    assert len(caplog.messages[0]) < 1000


def test_a_good_record_outlives_garbage_and_is_warned_about_again(view, record, caplog):
    view.replace(values(record(1)))
    for _ in range(2):
        view.apply([Change(record_key(record(1)), b"garbage")])
        assert ids(view) == [1]
        view.apply([put(record(1))])
    assert len(caplog.messages) == 2


def test_a_flood_of_bad_keys_ends_in_silence(view, caplog):
    view.replace({b"/dynamo/v1/instances/%d" % number: b"garbage" for number in range(2000)})
    assert len(caplog.messages) == 1024
