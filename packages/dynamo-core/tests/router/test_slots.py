"""Workers get small numbers, and numbers of gone workers are used again."""

from __future__ import annotations

import pytest

from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.router.slots import Slots


def worker(number, rank=0):
    return WorkerKey(InstanceId(number), rank)


def test_the_lowest_free_number_is_taken():
    slots = Slots()
    assert [slots.take(worker(n)) for n in (7, 8, 9, 8)] == [0, 1, 2, 1]
    slots.release(worker(8))
    slots.release(worker(7))
    assert [slots.take(worker(n, 1)) for n in (7, 8, 9)] == [0, 1, 3]
    assert len(slots) == 4


def test_releasing_a_stranger_is_a_bug():
    with pytest.raises(KeyError):
        Slots().release(worker(1))
