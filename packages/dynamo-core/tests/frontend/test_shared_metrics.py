"""Metrics of several processes as one; the processes are objects with registries of their own here."""

from __future__ import annotations

import contextlib

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from dynamo.errors import ConfigError
from dynamo.frontend.shared_metrics import SharedMetrics


class Frontend:
    """One process."""

    def __init__(self, directory):
        registry = CollectorRegistry()
        self.requests = Counter("dynamo_frontend_requests", "x", ["model"], registry=registry)
        self.seconds = Histogram("dynamo_frontend_seconds", "x", buckets=(1, 2), registry=registry)
        self.inflight = Gauge("dynamo_frontend_inflight", "x", registry=registry)
        self.index = Gauge("dynamo_router_index", "x", registry=registry)
        self.shared = SharedMetrics(registry, directory)

    def samples(self):
        """Values by name, a sum over frontends for those that are labelled by it."""
        found = {}
        for family in text_string_to_metric_families(self.shared.render().decode()):
            for sample in family.samples:
                labels = {key: value for key, value in sample.labels.items() if key != "frontend_process"}
                key = (sample.name, *sorted(labels.values()))
                found[key] = found.get(key, 0) + sample.value
        return found


@pytest.fixture
async def start(tmp_path):
    async with contextlib.AsyncExitStack() as stack:

        def make():
            frontend = Frontend(tmp_path / "8000")
            stack.push_async_callback(end, frontend)
            return frontend

        ended = set()

        async def end(frontend):
            if frontend not in ended:
                ended.add(frontend)
                await frontend.shared.close()

        make.end = end
        yield make


async def test_counts_are_added_and_survive_their_process(start):
    one, other = start(), start()
    one.requests.labels("m").inc(3)
    other.requests.labels("m").inc(4)
    other.requests.labels("n").inc(1)
    one.seconds.observe(0.5)
    other.seconds.observe(1.5)
    one.inflight.set(2)
    other.inflight.set(5)
    one.index.set(10)
    other.index.set(10)
    assert one.samples()["dynamo_frontend_requests_total", "m"] == 3
    await start.end(other)
    after = one.samples()
    assert after["dynamo_frontend_requests_total", "m"] == 7
    assert after["dynamo_frontend_requests_total", "n"] == 1
    assert after["dynamo_frontend_seconds_bucket", "1.0"] == 1
    assert after["dynamo_frontend_seconds_bucket", "2.0"] == 2
    assert after["dynamo_frontend_seconds_count",] == 2
    assert after["dynamo_frontend_inflight",] == 2
    assert after["dynamo_router_index",] == 10
    assert one.samples() == after
    third = start()
    third.requests.labels("m").inc(100)
    assert third.samples()["dynamo_frontend_requests_total", "m"] == 104
    await start.end(one)
    assert third.samples()["dynamo_frontend_requests_total", "m"] == 107


async def test_living_processes_are_asked_by_their_snapshots(start):
    one, other = start(), start()
    other.requests.labels("m").inc(4)
    other.inflight.set(5)
    other.index.set(7)
    one.index.set(7)
    other.shared._leave_snapshot()
    found = one.samples()
    assert found["dynamo_frontend_requests_total", "m"] == 4
    assert found["dynamo_frontend_inflight",] == 5
    text = one.shared.render().decode()
    assert text.count("dynamo_router_index{frontend_process=") == 2


async def test_everything_begins_anew_with_the_first_process(start, tmp_path):
    one = start()
    one.requests.labels("m").inc(3)
    await start.end(one)
    again = start()
    assert ("dynamo_frontend_requests_total", "m") not in again.samples()
    assert sorted(path.suffix for path in (tmp_path / "8000").iterdir()) == ["", ".lock"]


def test_a_directory_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="metrics"):
        SharedMetrics(CollectorRegistry(), tmp_path / "file" / "x")


async def test_what_a_dead_process_of_another_version_left_stops_nobody(start, tmp_path, caplog):
    one = start()
    (tmp_path / "8000" / "1-dead.lock").touch()
    (tmp_path / "8000" / "1-dead.snapshot").write_bytes(b"\x81\xa1x\x01")
    other = start()
    other.requests.labels("m").inc(4)
    assert other.samples()["dynamo_frontend_requests_total", "m"] == 4
    assert one.samples()["dynamo_frontend_inflight",] == 0
    assert "the last metrics of frontend 1-dead are lost" in caplog.text
    assert not list((tmp_path / "8000").glob("1-dead*"))
    (tmp_path / "8000" / "retired").write_bytes(b"\xc1")
    assert other.samples()["dynamo_frontend_requests_total", "m"] == 4


async def test_nobody_else_can_hold_the_lock_of_the_directory(tmp_path):
    """Whoever can open a file can lock it."""
    shared = SharedMetrics(CollectorRegistry(), tmp_path / "state" / "frontend" / "metrics" / "8000")
    for path in (tmp_path / "state" / "frontend", *(tmp_path / "state" / "frontend").glob("metrics/*")):
        assert path.stat().st_mode & 0o077 == 0, path
    await shared.close()
