"""Health conditions, and the port that shows them."""

from __future__ import annotations

import socket

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from dynamo.errors import CannotConnect
from dynamo.runtime.health import Health, serve_system_port


def test_without_conditions_a_process_is_still_starting():
    """Its port is open before it knows whether its settings are right: nobody may take that for readiness."""
    assert Health().report() == (503, {"status": "notready", "failing": {"process": "starting"}})


def test_it_is_ready_when_all_conditions_hold():
    health, reasons = Health(), {"engine": "loading", "discovery": None}
    health.require("engine", lambda: reasons["engine"])
    health.require("discovery", lambda: reasons["discovery"])
    assert health.report() == (503, {"status": "notready", "failing": {"engine": "loading"}})
    reasons["engine"] = None
    assert health.report()[0] == 200
    reasons["discovery"] = "lost"
    assert health.failing() == {"discovery": "lost"}


def test_a_condition_can_be_replaced():
    health = Health()
    health.require("engine", lambda: "starting")
    health.require("engine", lambda: None)
    assert health.failing() == {}


@pytest.fixture
async def port():
    health, registry = Health(), CollectorRegistry()
    server = await serve_system_port("127.0.0.1", 0, health, registry)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=10) as client:
        yield client, health, registry
    await server.close()


async def test_the_port_answers_health_by_status(port):
    client, health, _ = port
    assert (await client.get("/health")).status_code == 503
    health.require("discovery", lambda: None)
    ready = await client.get("/health")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "failing": {}})
    health.require("engine", lambda: "the engine is starting")
    waiting = await client.get("/health")
    assert (waiting.status_code, waiting.json()["failing"]) == (503, {"engine": "the engine is starting"})


async def test_a_process_that_is_not_ready_is_alive(port):
    client, health, _ = port
    health.require("engine", lambda: "never")
    live = await client.get("/live")
    assert (live.status_code, live.json()) == (200, {"status": "live"})


async def test_the_port_shows_the_metrics_of_this_process(port):
    client, _, registry = port
    Counter("dynamo_things", "Things.", registry=registry).inc(3)
    metrics = await client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "dynamo_things_total 3.0" in metrics.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/health", 405)])
async def test_the_port_serves_nothing_else(port, method, path, status):
    client, _, _ = port
    assert (await client.request(method, path)).status_code == status


async def test_a_port_that_is_taken_names_the_flag():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CannotConnect) as caught:
            await serve_system_port("127.0.0.1", taken.getsockname()[1], Health(), CollectorRegistry())
    assert "--system-port" in str(caught.value)
