"""Requests wait while every worker is beyond the threshold, and are let go by what frees one: no clock, no polling."""

from __future__ import annotations

import asyncio
import contextvars
import time

import pytest
from prometheus_client import CollectorRegistry

from dynamo.config import load_settings
from dynamo.errors import ConfigError, Disconnected, Draining, NoInstances, Overloaded, RateLimited
from dynamo.plugins import plugins
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import pack_token_ids
from dynamo.protocols.load import EngineLoad, WorkerLoad
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.protocols.routing import PromptHashes, RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.pickers import MaxScore
from dynamo.router.policy import RouterPolicy, policy_for_mode
from dynamo.router.queue_metrics import QueueMetrics
from dynamo.router.replica_sync import OpenRequest, ReplicaMessage, ReplicaSync
from dynamo.router.settings import RouterSettings
from dynamo.router.thresholds import BusyThresholds
from dynamo.runtime.telemetry import render_metrics

SIZE, BATCH = 16, 1000
caller = contextvars.ContextVar("caller", default="nobody")


def request(name, tokens=500, **fields):
    prompt = PromptHashes(pack_token_ids([hash(name) % 10**6 + n for n in range(tokens)]))
    return RouteRequest(name, "m", prompt_tokens=tokens, prompt=prompt, **fields)


class User:
    """Routes when it is let go, as a generation does."""

    def __init__(self, table, asked):
        self.table, self.asked = table, asked
        self.route = self.error = self.caller = None

    def enter(self):
        self.entry = self.table.queue.enter(self.asked, self)
        if self.entry is None:
            self.admitted()
        return self

    def admitted(self):
        self.caller = caller.get()
        self.route = self.table.route(self.asked, time.monotonic())

    def refused(self, error):
        self.caller = caller.get()
        self.error = error


class Bench:
    def __init__(self, mode="kv", workers=1, measures=False, **settings):
        settings = {"router_queue_threshold": 1.0, "router_use_kv_events": False, **settings}
        self.registry = CollectorRegistry()
        self.mode = mode
        self.settings = RouterSettings(router_mode=mode, **settings)
        self.sync = ReplicaSync(1, lambda *booking: self.table.book_remote(*booking))
        self.table = CandidateTable(
            policy_for_mode(mode, plugins(), self.settings),
            self.settings,
            replicas=self.sync,
            queue_metrics=QueueMetrics(self.registry).of("m"),
            measures=measures,
        )
        for number in range(1, workers + 1):
            self.add_worker(number)

    def add_worker(self, number):
        card = ModelDeploymentCard("m", block_size_tokens=SIZE, max_batched_tokens=BATCH)
        self.table.put(InstanceRecord("ns", "backend", "generate", number, card=card))

    def enter(self, name, tokens=500, **fields):
        return User(self.table, request(name, tokens, **fields)).enter()

    def fill(self, number=3):
        """Requests beyond the threshold at one worker."""
        return [self.enter(f"first {n}").route for n in range(number)]

    def report(self, prefill_tokens):
        """The worker says what it has to compute."""
        load = EngineLoad(active_prefill_tokens=prefill_tokens)
        self.table.take_load(WorkerLoad(1, "m", [load]), time.monotonic())

    def change(self, **settings):
        self.settings = self.settings.model_copy(update=settings)
        self.table.configure(policy_for_mode(self.mode, plugins(), self.settings), self.settings)

    def metrics(self):
        lines = render_metrics(self.registry).decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


@pytest.fixture
async def bench():
    made = Bench()
    yield made
    made.table.queue.close()


async def test_with_room_nobody_waits(bench):
    assert None not in bench.fill()
    assert len(bench.table.queue) == 0


async def test_without_the_setting_there_is_no_queue():
    assert Bench(router_queue_threshold=None).table.queue is None


async def test_beyond_the_threshold_a_request_waits_for_a_prompt_to_be_computed(bench):
    routes = bench.fill()  # 1,500 tokens at a worker with batches of 1,000
    waiting = bench.enter("waits")
    assert waiting.route is None
    routes[0].answered()
    assert waiting.route is not None


@pytest.mark.parametrize("freed_by", ["end", "failure", "worker", "threshold", "no queue", "report", "replica"])
async def test_what_frees_a_worker_lets_a_request_go(freed_by):
    bench = Bench()
    routes = []
    if freed_by == "report":
        bench.report(5000)
    elif freed_by == "replica":
        bench.sync.take(ReplicaMessage(9, 0, booked=[OpenRequest(1, 1, 0, 5000, 0)]), time.monotonic())
    else:
        routes = bench.fill()
    waiting = bench.enter("waits")
    assert waiting.route is None
    if freed_by == "end":
        routes[1].end()
    elif freed_by == "failure":
        routes[1].failed(Disconnected("gone"), time.monotonic())
        routes[1].end()
    elif freed_by == "worker":
        bench.add_worker(2)
    elif freed_by == "threshold":
        bench.change(router_queue_threshold=2.0)
    elif freed_by == "no queue":
        bench.change(router_queue_threshold=None)
    elif freed_by == "report":
        bench.report(0)
    else:
        bench.sync.take(ReplicaMessage(9, 1, freed=[1]), time.monotonic())
        bench.table.poke()
    assert waiting.route is not None
    bench.table.queue.close()


async def test_the_worker_is_chosen_when_there_is_room_not_before():
    bench = Bench(workers=2)
    held = [bench.enter(f"first {n}", 1500).route for n in range(2)]
    assert {route.worker.instance_id for route in held} == {1, 2}
    waiting = bench.enter("waits")
    assert waiting.route is None
    freed = next(route for route in held if route.worker.instance_id == 2)
    freed.answered()
    freed.end()
    assert waiting.route.worker == WorkerKey(InstanceId(2))
    bench.table.queue.close()


async def test_only_so_many_go_as_there_is_room_for(bench):
    routes = bench.fill()
    waiting = [bench.enter(f"waits {n}", 600) for n in range(5)]
    for route in routes:
        route.end()
    # 600 and 1,200 tokens: the second one goes beyond a batch, so it is the last.
    assert [user.route is not None for user in waiting] == [True, True, False, False, False]
    bench.enter("overtakes?", 1)
    assert len(bench.table.queue) == 4


async def test_order_is_priority_then_target(bench):
    routes = bench.fill()
    late = bench.enter("late", ttft_target_seconds=50.0)
    soon = bench.enter("soon", ttft_target_seconds=1.0)
    urgent = bench.enter("urgent", priority=-1, ttft_target_seconds=100.0)
    order = []
    for route in routes:
        route.end()
        for user in (late, soon, urgent):
            if user.route is not None and user not in order:
                order.append(user)
    for user in list(order):
        user.route.end()
    assert order[0] is urgent
    assert soon.route is not None


async def test_cached_prompts_are_cheap():
    bench = Bench()
    bench.enter("known", 512).route.end()
    assert bench.table.uncached_tokens(request("known", 512)) == 0
    assert bench.table.uncached_tokens(request("new", 512)) == 512
    bench.table.queue.close()


async def test_a_client_that_leaves_leaves_the_queue(bench):
    routes = bench.fill()
    gone, stays = bench.enter("gone"), bench.enter("stays")
    bench.table.queue.leave(gone.entry)
    bench.table.queue.leave(gone.entry)
    for route in routes:
        route.end()
    assert (gone.route, stays.route is not None) == (None, True)
    assert len(bench.table.queue) == 0
    assert bench.table.queue._timer is None


async def test_who_waits_too_long_is_refused():
    bench = Bench(router_queue_max_wait_seconds=0.01)
    bench.fill()
    waiting = bench.enter("waits")
    while waiting.error is None:
        await asyncio.sleep(0)
    assert isinstance(waiting.error, Overloaded)
    assert waiting.error.retry_after_seconds >= 1
    assert bench.metrics()['dynamo_frontend_router_admission_rejected_total{model="m",reason="expired"}'] == 1
    assert bench.table.queue._timer is None


async def test_a_full_queue_refuses_at_once():
    bench = Bench(router_queue_max_requests=2)
    bench.fill()
    for n in range(2):
        bench.enter(n)
    with pytest.raises(Overloaded) as caught:
        bench.enter("one more")
    assert caught.value.retry_after_seconds >= 1
    assert len(bench.table.queue) == 2
    bench.table.queue.close()


async def test_who_fills_the_queue_makes_room_for_others():
    bench = Bench(router_queue_max_requests=2)
    bench.fill()
    flood = [bench.enter(n, tenant="flood", ttft_target_seconds=10.0 + n) for n in range(2)]
    token = caller.set("small")
    small = bench.enter("small", 100, tenant="small")
    caller.reset(token)
    assert isinstance(flood[1].error, RateLimited)
    assert flood[1].caller == "nobody"  # told in its own name, not in that of who came
    assert flood[1].error.retry_after_seconds >= 1
    with pytest.raises(RateLimited):
        bench.enter("more", tenant="flood")
    assert small.error is None
    metrics = bench.metrics()
    assert metrics['dynamo_frontend_router_queue_pending_requests{model="m",tenant="flood"}'] == 1
    assert metrics['dynamo_frontend_router_queue_pending_requests{model="m",tenant="small"}'] == 1
    assert metrics['dynamo_frontend_router_queue_pending_isl_tokens{model="m",tenant="small"}'] == 100
    bench.table.queue.close()


async def test_who_is_let_go_acts_in_its_own_name(bench):
    routes = bench.fill()
    token = caller.set("alice")
    waiting = bench.enter("waits")
    caller.reset(token)
    routes[0].end()
    assert waiting.caller == "alice"


async def test_workers_that_vanish_leave_requests_waiting_for_others(bench):
    bench.fill()
    waiting = bench.enter("waits")
    bench.table.remove(1)
    with pytest.raises(NoInstances):
        bench.enter("new")
    assert (waiting.route, waiting.error) == (None, None)
    bench.add_worker(2)
    assert waiting.route.worker.instance_id == 2


async def test_busy_workers_refuse_new_requests_and_keep_those_that_wait(bench):
    routes = bench.fill()
    waiting = bench.enter("waits")
    bench.table.set_thresholds(BusyThresholds(active_prefill_tokens_threshold=1))
    with pytest.raises(Overloaded, match="busy"):
        bench.enter("new")
    assert waiting.error is None
    for route in routes:
        route.end()
    assert waiting.route is not None


async def test_without_bookings_the_workers_word_counts():
    bench = Bench("round-robin", router_queue_threshold=None)
    bench.change(router_queue_threshold=1.0)
    assert bench.table._kv is None
    bench.report(1001)
    waiting = bench.enter("waits")
    assert waiting.route is None
    bench.report(1000)
    assert waiting.route is not None
    bench.table.queue.close()


async def test_tenants_in_metrics_are_limited(bench):
    routes = bench.fill()
    for n in range(50):
        bench.enter(n, 1, tenant=f"tenant-{n}")
    metrics = bench.metrics()
    depths = {
        name: value for name, value in metrics.items() if name.startswith("dynamo_frontend_router_queue_pending_r")
    }
    assert len(depths) == 33
    assert sum(depths.values()) == 50
    for route in routes:
        route.end()
    assert len(bench.table.queue) == 0
    metrics = bench.metrics()
    assert {value for name, value in metrics.items() if "_pending_" in name} == {0}
    assert metrics['dynamo_frontend_router_queue_wait_seconds_count{model="m"}'] == 50
    assert metrics['dynamo_frontend_router_admission_received_total{model="m"}'] == 53


@pytest.mark.parametrize(
    "settings",
    [
        {"router_queue_tenant_weights": ["gold"]},
        {"router_queue_tenant_weights": ["gold=0"]},
        {"router_queue_tenant_weights": ["gold=nan"]},
        {"router_queue_tenant_weights": ["=1"]},
        {"busy_thresholds": ["llama"]},
        {"busy_thresholds": ["llama=2:1"]},
        {"busy_thresholds": ["llama=0.5"]},
        {"busy_thresholds": ["=:1"]},
        {"busy_thresholds": ["llama=:0"]},
    ],
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        load_settings(RouterSettings, file=settings)


async def test_who_waits_is_told_when_the_process_goes_down(bench):
    running = bench.fill()
    waiting = [bench.enter(f"waiting {n}") for n in range(3)]
    bench.table.drain()
    assert [user.error.code for user in waiting] == ["draining"] * 3
    assert all(user.error.retry_after_seconds >= 1 for user in waiting)
    assert len(bench.table.queue) == 0
    with pytest.raises(Draining):
        bench.enter("late")
    for route in running:
        route.end()
    assert bench.enter("there is room").route is not None


async def test_a_full_queue_of_many_tenants_costs_a_look_at_the_workers(bench):
    """Not one per request: whatever happens at a worker makes the queue look."""
    bench.fill()
    for number in range(200):
        bench.enter(f"q{number}", 10, tenant=f"t{number % 50}", priority=number % 20)
    asked = 0
    has_room = bench.table.has_room

    class Counting:
        """The table, which counts what it is asked about requests."""

        any_room, kind, uncached_tokens = bench.table.any_room, bench.table.kind, bench.table.uncached_tokens

        def has_room(self, request, now):
            nonlocal asked
            asked += 1
            return has_room(request, now)

    bench.table.queue._workers = Counting()
    bench.report(5000)
    bench.table.poke()
    assert (asked, len(bench.table.queue)) == (0, 200)
    bench.report(0)
    bench.change(router_queue_threshold=1.51)  # room for a few
    assert 0 < 200 - len(bench.table.queue) < 10
    assert asked <= 200 - len(bench.table.queue) + 1


class Picky:
    """A filter that fails at one request, once it is told to."""

    angry = False

    def filter(self, request, candidates):
        if self.angry and request.request_id == "odd":
            raise KeyError("a plugin's own mistake")
        return candidates


async def test_a_filter_that_fails_at_one_request_does_not_disturb_others(bench):
    routes = bench.fill()
    picky = Picky()
    bench.table.configure(RouterPolicy([picky], [], MaxScore()), bench.settings)
    odd, even = Failing(bench.table, request("odd", 10)).enter(), bench.enter("even", 10)
    picky.angry = True
    for route in routes:
        route.end()
    assert isinstance(odd.failed, KeyError)
    assert even.route is not None


class Failing(User):
    """Keeps what its turn brought it, as a generation does."""

    failed = None

    def admitted(self):
        try:
            super().admitted()
        except KeyError as error:
            self.failed = error


@pytest.mark.parametrize("mode", ["round-robin", "kv"])
async def test_a_queue_that_is_switched_on_later_holds_back_as_one_of_the_start(mode):
    bench = Bench(mode, router_queue_threshold=None, measures=True)
    for number in range(3):
        bench.table.route(request(f"first {number}"), time.monotonic())
    bench.change(router_queue_threshold=1.0)
    assert bench.enter("waits").route is None
    bench.table.queue.close()
