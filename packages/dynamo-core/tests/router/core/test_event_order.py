"""Batches of KV events are applied once and in order; holes and new lives are asked about."""

from __future__ import annotations

import random

from dynamo.protocols.kv_events import KvEventBatch
from dynamo.router.core.event_order import EventOrder, Verdict


def batch(sequence, epoch=5, snapshot=False):
    return KvEventBatch(1, 0, epoch, sequence, 16, [], "m", snapshot)


def started(sequence=-1, epoch=5):
    order = EventOrder()
    order.judge_answer(batch(sequence, epoch, snapshot=True))
    return order


def test_in_order_each_is_applied_once():
    order = started()
    assert [order.judge(batch(n)) for n in (0, 1, 1, 0, 2)] == [
        Verdict.APPLY,
        Verdict.APPLY,
        Verdict.DUPLICATE,
        Verdict.DUPLICATE,
        Verdict.APPLY,
    ]


def test_a_hole_is_asked_about_and_what_comes_meanwhile_is_kept():
    order = started(3)
    assert [order.judge(batch(n)) for n in (5, 7, 6)] == [Verdict.ASK, Verdict.KEEP, Verdict.KEEP]
    assert order.judge_answer(batch(4)) is Verdict.APPLY
    assert [b.sequence for b in order.answered()] == [5, 6, 7]
    assert order.sequence == 7
    assert order.judge(batch(8)) is Verdict.APPLY


def test_a_snapshot_is_newer_than_what_was_kept():
    order = started(3)
    order.judge(batch(5))
    assert order.judge_answer(batch(9, snapshot=True)) is Verdict.APPLY
    assert order.judge_answer(batch(9)) is Verdict.APPLY  # its second part
    assert order.judge_answer(batch(7)) is Verdict.DUPLICATE
    assert order.answered() == []
    assert order.judge(batch(10)) is Verdict.APPLY


def test_a_hole_behind_the_answer_shows_with_the_next_batch():
    order = started(3)
    order.judge(batch(1_000_000))
    assert order.answered() == []
    assert order.judge(batch(4)) is Verdict.APPLY


def test_a_new_life_is_asked_about_and_the_old_one_is_over():
    order = started(3)
    assert order.judge(batch(0, epoch=6)) is Verdict.ASK
    order.judge_answer(batch(0, epoch=6, snapshot=True))
    assert order.answered() == []
    assert order.judge(batch(4, epoch=5)) is Verdict.STALE
    assert order.judge(batch(1, epoch=6)) is Verdict.APPLY


def test_an_invented_life_is_undone_by_the_workers_answer():
    order = started(3)
    order.judge(batch(0, epoch=2**60))
    order.judge_answer(batch(3, snapshot=True))
    order.answered()
    assert order.judge(batch(4)) is Verdict.APPLY


def test_replayed_batches_of_another_life_are_ignored():
    order = started(3)
    order.judge(batch(5))
    assert order.judge_answer(batch(4, epoch=9)) is Verdict.STALE


def test_what_is_kept_is_bounded():
    order = started(-1)
    for n in range(1, 5000):
        order.judge(batch(n))
    for n in range(3974):
        order.judge_answer(batch(n))
    assert [b.sequence for b in order.answered()] == []
    for n in range(3974, 3976):
        assert order.judge(batch(n)) is Verdict.APPLY


def test_whoever_cannot_ask_goes_on():
    order = EventOrder()
    assert order.judge(batch(7)) is Verdict.ASK
    order.go_on_at(batch(7))
    assert order.judge(batch(8)) is Verdict.APPLY


def test_any_loss_and_disorder_ends_in_the_true_order():
    for seed in range(50):
        rng = random.Random(seed)
        sent = list(range(300))
        arriving = [n for n in sent if rng.random() < 0.9 for _ in range(rng.choice((1, 1, 2)))]
        for i in range(0, len(arriving) - 3, 3):
            if rng.random() < 0.3:
                arriving[i], arriving[i + 2] = arriving[i + 2], arriving[i]
        order, applied = started(), []
        for n in arriving:
            verdict = order.judge(batch(n))
            if verdict is Verdict.APPLY:
                applied.append(n)
            elif verdict is Verdict.ASK:
                for replay in range(order.sequence + 1, max(arriving[: arriving.index(n) + 1]) + 1):
                    if order.judge_answer(batch(replay)) is Verdict.APPLY:
                        applied.append(replay)
                applied += [b.sequence for b in order.answered()]
        assert applied == list(range(len(applied)))
        assert len(applied) > 200
