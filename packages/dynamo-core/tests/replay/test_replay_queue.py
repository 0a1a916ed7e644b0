"""The router's queue in a replay: the one that frontends have, on virtual time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dynamo.errors import ConfigError
from dynamo.mocker.core import CoreLimits
from dynamo.mocker.perf_model import PerfModel
from dynamo.replay.command import replay
from dynamo.replay.routing import ReplayRouter
from dynamo.replay.simulation import Simulation
from dynamo.replay.traces import Trace, TraceRequest, read_trace
from dynamo.router.settings import RouterSettings


def _simulation(requests: list[TraceRequest], perf_model: PerfModel, *, workers: int = 1, **settings) -> Simulation:
    limits = CoreLimits(total_blocks=1 << 40, block_size=4)
    settings = {"router_mode": "kv", "router_queue_threshold": 0.0, **settings}
    router = ReplayRouter(RouterSettings(**settings), limits, workers)
    trace = Trace("queued", 4, requests)
    return Simulation(trace, router, workers=workers, limits=limits, perf_model=perf_model)


def _sent(simulation: Simulation) -> list[tuple[int, float]]:
    """Who went to a worker when, by place in the trace."""
    return [(flight.number, round(flight.sent, 9)) for flight in simulation.run()]


def test_requests_wait_until_a_prompt_is_computed(perf_model: PerfModel) -> None:
    requests = [TraceRequest(time, 8, 1, []) for time in (0.0, 0.1, 0.2)]
    simulation = _simulation(requests, perf_model)
    flights = simulation.run()
    # 1.8 s each, one after the other; without a queue the last two would share a step of 2.6 s.
    assert [round(flight.sent, 9) for flight in flights] == [0.0, 1.8, 3.6]
    assert [round(flight.ttft, 9) for flight in flights] == [1.8, 3.5, 5.2]
    assert _sent(_simulation(requests, perf_model, router_queue_threshold=None)) == [(0, 0.0), (1, 0.1), (2, 0.2)]


def test_the_threshold_is_in_batches(perf_model: PerfModel) -> None:
    requests = [TraceRequest(0.1 * n, 4096, 1, []) for n in range(4)]
    sent = _sent(_simulation(requests, perf_model, router_queue_threshold=1.0, router_queue_max_wait_seconds=1000.0))
    # At 8,192 tokens, a batch, there is room still; the fourth waits for the first token.
    assert sent == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 410.6)]


def test_who_waits_is_sent_where_its_prefix_came_to_be_meanwhile(perf_model: PerfModel) -> None:
    requests = [TraceRequest(0.0, 9, 1, [1, 2]), TraceRequest(0.0, 90, 1, []), TraceRequest(0.1, 9, 1, [1, 2])]
    first, _, waited = _simulation(requests, perf_model, workers=2).run()
    assert (waited.worker, waited.sequence.cached_tokens) == (first.worker, 8)
    assert waited.sent == pytest.approx(1.9)


def test_earlier_priorities_go_first(perf_model: PerfModel) -> None:
    requests = [TraceRequest(0.1 * n, 8, 1, [], priority=1 if n < 3 else -1) for n in range(5)]
    assert [number for number, _ in _sent(_simulation(requests, perf_model))] == [0, 3, 4, 1, 2]


def test_tenants_take_turns(perf_model: PerfModel) -> None:
    requests = [TraceRequest(0.1 * n, 8, 1, [], tenant="a" if n < 4 else "b") for n in range(6)]
    order = [number for number, _ in _sent(_simulation(requests, perf_model, router_queue_quantum_tokens=8))]
    assert order == [0, 1, 4, 2, 5, 3]


def test_who_waits_too_long_is_refused_when_it_is_time(perf_model: PerfModel) -> None:
    requests = [TraceRequest(0.0, 1000, 1, []), TraceRequest(1.0, 8, 1, []), TraceRequest(50.0, 8, 1, [])]
    simulation = _simulation(requests, perf_model)
    # The first takes 101 s: the second gives up after 60 s, the third does not.
    assert _sent(simulation) == [(0, 0.0), (2, 101.0)]
    assert simulation.refused == 1


def test_a_full_queue_refuses(perf_model: PerfModel) -> None:
    requests = [TraceRequest(0.1 * n, 8, 1, []) for n in range(5)]
    simulation = _simulation(requests, perf_model, router_queue_max_requests=2)
    assert [number for number, _ in _sent(simulation)] == [0, 1, 2]
    assert simulation.refused == 2


@pytest.mark.parametrize("mode", ["round-robin", "least-loaded", "kv", "kv-upstream"])
def test_every_mode_serves_all_that_waited(conversations: Trace, perf_model: PerfModel, mode: str) -> None:
    simulation = _simulation(
        conversations.requests, perf_model, workers=2, router_mode=mode, router_queue_max_wait_seconds=1e6
    )
    flights = simulation.run()
    assert sorted(flight.number for flight in flights) == list(range(len(conversations.requests)))
    assert any(flight.sent > flight.request.arrival_seconds for flight in flights)
    assert all(flight.request.arrival_seconds <= flight.sent < flight.first_token for flight in flights)


def _log(path: Path) -> Path:
    """As a frontend's request log has it: two tenants, one request that is urgent."""
    lines = [
        {
            "timestamp": 10 * n,
            "input_length": 8000,
            "output_length": 2,
            "hash_ids": list(range(100 * n, 100 * n + 15)),
            "priority": -1 if n == 9 else 0,
            **({"api_key_name": "gold"} if n % 2 else {}),
        }
        for n in range(10)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_request_log_says_who_is_sooner(tmp_path: Path) -> None:
    requests = read_trace(_log(tmp_path / "log.jsonl")).requests
    assert [request.tenant for request in requests[:3]] == ["", "gold", ""]
    assert [request.priority for request in requests[-2:]] == [0, -1]


def test_the_command_shows_the_queue(tmp_path: Path) -> None:
    trace, out = _log(tmp_path / "log.jsonl"), tmp_path / "out.json"
    arguments = [str(trace), "--workers", "1", "--router-mode", "kv", "--json", str(out)]
    done = CliRunner().invoke(replay, [*arguments, "--router-queue-threshold", "0"], catch_exceptions=False)
    lines = [line.split() for line in done.output.splitlines()]
    # Priority -1 came last, and waits for the prompt that is being computed and no other.
    urgent, others = [line for line in lines if line[:1] == ["kv"]][1:]
    assert urgent[1:3] == others[1:3] == ["0", "9"]
    queue = json.loads(out.read_text())["results"][0]["queue"]
    assert queue["waited"] == 9
    assert queue["ttft_seconds_by_priority"]["-1"]["mean"] < queue["ttft_seconds_by_priority"]["0"]["mean"] / 2
    plain = CliRunner().invoke(replay, arguments, catch_exceptions=False)
    assert "waited" not in plain.output
    assert json.loads(out.read_text())["results"][0]["queue"] is None


def test_a_queue_has_no_exact_regret(tmp_path: Path) -> None:
    arguments = [str(_log(tmp_path / "log.jsonl")), "--regret-sample", "2", "--router-queue-threshold", "1"]
    with pytest.raises(ConfigError, match="--regret-sample does not go with --router-queue-threshold"):
        CliRunner().invoke(replay, arguments, catch_exceptions=False)
