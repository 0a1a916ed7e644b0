"""What every discovery backend of the core must do, asked of each."""

import asyncio
import random

import pytest

from dynamo.errors import ConfigError
from dynamo.protocols.model_card import Artifact, ModelDeploymentCard


async def test_lists_what_another_instance_registered(pair, record):
    first, second = pair
    card = ModelDeploymentCard("m", artifacts={"tokenizer.json": Artifact("ab", 3)})
    registered = record(7, transports={"tcp": "127.0.0.1:1"}, card=card, metadata={"a": "ü"})
    await first.register(registered)
    assert await second.list() == [registered]


async def test_list_is_by_namespace_and_ordered(pair, record):
    first, second = pair
    for instance in (record(3, namespace="b"), record(2, namespace="a"), record(1, namespace="a")):
        await first.register(instance)
    assert [r.instance_id for r in await second.list()] == [1, 2, 3]
    assert [r.instance_id for r in await second.list("b")] == [3]
    assert await second.list("c") == []


async def test_watch_gives_snapshot_then_synced_then_changes(pair, record, watch):
    first, second = pair
    await first.register(record(1))
    watcher = watch(second)
    assert list(await watcher.snapshot()) == [1]
    await first.register(record(2))
    event = await watcher.next()
    assert (event.kind, event.record.instance_id) == ("put", 2)
    await first.unregister(record(1))
    event = await watcher.next()
    assert (event.kind, event.record.address, event.record.id) == ("delete", record(1).address, 1)


async def test_watch_of_nothing_is_synced_at_once(pair, watch):
    assert await watch(pair[1]).snapshot() == {}


async def test_watch_sees_its_namespace_only(pair, record, watch):
    first, second = pair
    watcher = watch(second, "a")
    assert await watcher.snapshot() == {}
    await first.register(record(1, namespace="b"))
    await first.register(record(2, namespace="a"))
    assert (await watcher.next()).record.instance_id == 2


async def test_registering_again_replaces(pair, record, watch):
    first, second = pair
    await first.register(record(1, metadata={"v": "1"}))
    watcher = watch(second)
    await watcher.snapshot()
    await first.register(record(1, metadata={"v": "2"}))
    event = await watcher.next()
    assert (event.kind, event.record.metadata) == ("put", {"v": "2"})
    assert [r.metadata for r in await second.list()] == [{"v": "2"}]


async def test_one_instance_may_serve_two_endpoints(pair, record):
    first, second = pair
    await first.register(record(1))
    await first.register(record(1, endpoint="clear"))
    await first.unregister(record(1))
    assert [r.endpoint for r in await second.list()] == ["clear"]


async def test_a_registered_record_does_not_follow_later_changes(pair, record):
    first, second = pair
    mine = record(1, metadata={})
    await first.register(mine)
    mine.metadata["late"] = "yes"
    assert (await second.list())[0].metadata == {}


async def test_unregister_is_idempotent(pair, record):
    first, second = pair
    await first.unregister(record(1))
    await first.register(record(1))
    await first.unregister(record(1))
    await first.unregister(record(1))
    assert await second.list() == []


async def test_close_withdraws_own_records_only_and_ends_own_watches(pair, record, watch):
    first, second = pair
    await first.register(record(1))
    await second.register(record(2))
    ending, going_on = watch(first), watch(second)
    await ending.snapshot()
    known = await going_on.snapshot()
    await first.close()
    await first.close()
    with pytest.raises(StopAsyncIteration):
        await ending.next()
    await going_on.until({2}, known)
    assert [r.instance_id for r in await second.list()] == [2]


async def test_unregister_after_close_is_harmless(pair, record):
    first, second = pair
    await first.register(record(1))
    await second.register(record(2))
    await first.close()
    await first.unregister(record(1))
    assert [r.instance_id for r in await second.list()] == [2]


@pytest.mark.parametrize("component", ["", "a.b", "../x", "-a", "a" * 64])
async def test_refuses_names_that_are_not_names(pair, record, component):
    with pytest.raises(ConfigError, match="component"):
        await pair[0].register(record(1, component=component))


async def test_a_watcher_ends_up_with_what_is_there(pair, record, watch):
    """Any interleaving of changes and reads leads to the final state, with no delete of the unknown."""
    first, second = pair
    choose = random.Random(5)
    watcher = watch(second)
    known = await watcher.snapshot()
    expected = {}
    for step in range(60):
        instance_id = choose.randrange(6)
        owner = choose.choice(pair)
        if choose.random() < 0.6:
            await owner.register(record(instance_id, metadata={"step": str(step)}))
            expected[instance_id] = str(step)
        else:
            await owner.unregister(record(instance_id))
            expected.pop(instance_id, None)
        if choose.random() < 0.3:
            await asyncio.sleep(0)
            await watcher.until(expected, known)
    await first.register(record(99))
    await watcher.until({*expected, 99}, known)
    assert {r.instance_id: r.metadata.get("step") for r in await first.list()} == {**expected, 99: None}


async def test_a_slow_watcher_gets_each_final_state_once(pair, record, watch):
    first, second = pair
    watcher = watch(second)
    await watcher.snapshot()
    for step in range(50):
        await first.register(record(1, metadata={"step": str(step)}))
    await first.unregister(record(1))
    await first.register(record(2))
    known = {}
    events = 0
    while 2 not in known or 1 in known:
        event = await watcher.next()
        events += 1
        known[event.record.instance_id] = event
        if event.kind == "delete":
            del known[event.record.instance_id]
    assert events <= 52


async def test_two_watchers_of_one_instance_are_independent(pair, record, watch):
    first, second = pair
    one, two = watch(second), watch(second)
    await one.snapshot()
    await first.register(record(1))
    assert (await one.next()).record.instance_id == 1
    assert list(await two.snapshot()) == [1]
