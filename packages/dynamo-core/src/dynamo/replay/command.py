"""``dynamo replay``: a trace through the production router, on virtual time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from dynamo.config import settings_from_flags, settings_options
from dynamo.errors import ConfigError
from dynamo.mocker.core import CoreLimits
from dynamo.mocker.perf_model import PerfModel
from dynamo.mocker.profile_data import load_perf_model
from dynamo.replay.forking import DecisionForks
from dynamo.replay.plot import check_outputs, plot_results
from dynamo.replay.report import TraceFacts, render_queue, render_regret, render_shadows, render_table, to_json
from dynamo.replay.results import ModeResult, summarize
from dynamo.replay.routing import ReplayRouter
from dynamo.replay.simulation import Simulation
from dynamo.replay.traces import Trace, ideal_cached_tokens, read_trace
from dynamo.router.settings import RouterSettings

__all__ = ["replay", "replay_mode", "trace_facts"]

#: As good as without a bound.
_UNBOUNDED_BLOCKS = 1 << 40
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("trace", type=_PATH)
@click.option("--workers", default=8, show_default=True, type=click.IntRange(min=1), help="Simulated workers.")
@click.option("--blocks-per-worker", type=click.IntRange(min=1), help="KV blocks of 512 tokens; default: no bound.")
@click.option("--speed", default=1.0, show_default=True, help="Requests come so many times as fast as in the trace.")
@click.option("--limit", type=click.IntRange(min=1), help="Replay only so many requests.")
@click.option("--max-num-seqs", default=256, show_default=True, type=click.IntRange(min=1), help="Requests per step.")
@click.option(
    "--max-num-batched-tokens", default=8192, show_default=True, type=click.IntRange(min=1), help="Tokens per step."
)
@click.option("--perf-model", type=_PATH, help="Measurements of a worker, as --planner-profile-data of the mocker.")
@click.option("--kv-event-delay-ms", default=0.0, type=click.FloatRange(min=0), help="Delay of KV events.")
@click.option(
    "--regret-sample",
    type=click.IntRange(min=1),
    help="Simulate so many decisions at every other worker, too: what did the choice cost?",
)
@click.option("--json", "json_path", type=_PATH, help="Write the results to this file.")
@click.option("--plot", "plot_path", type=_PATH, help="Draw the results as a PNG; needs dynamo-core[plot].")
@settings_options(RouterSettings)
def replay(
    trace: Path,
    workers: int,
    blocks_per_worker: int | None,
    speed: float,
    limit: int | None,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    perf_model: Path | None,
    kv_event_delay_ms: float,
    regret_sample: int | None,
    json_path: Path | None,
    plot_path: Path | None,
    **flags: Any,
) -> None:
    """Replay TRACE (Mooncake's .jsonl, Azure's .csv) on simulated workers, once per mode of --router-mode, a,b,c.

    Requests go through the production router; workers take the time that a perf model says, and nothing is computed.
    """
    if speed <= 0:
        raise ConfigError(f"--speed is {speed}; it must be positive", param="speed")
    settings = settings_from_flags(RouterSettings, flags)
    if regret_sample and settings.router_queue_threshold is not None:
        raise ConfigError(
            "--regret-sample does not go with --router-queue-threshold",
            param="regret_sample",
            hint="a decision of the queue is when to send as well as where; ask for one of the two",
        )
    check_outputs(json_path, plot_path)
    loaded = read_trace(trace, limit=limit, speed=speed)
    limits = CoreLimits(
        total_blocks=blocks_per_worker or _UNBOUNDED_BLOCKS,
        block_size=loaded.block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    model = load_perf_model(perf_model) if perf_model else PerfModel()
    facts = trace_facts(loaded)
    modes = [mode.strip() for mode in settings.router_mode.split(",")]
    # All made before the first one runs: a name that is wrong shows at once.
    routers = [ReplayRouter(settings.model_copy(update={"router_mode": mode}), limits, workers) for mode in modes]
    results = []
    for mode, router in zip(modes, routers, strict=True):
        simulation = Simulation(
            loaded,
            router,
            workers=workers,
            limits=limits,
            perf_model=model,
            kv_event_delay_seconds=kv_event_delay_ms / 1000,
            forks=DecisionForks(len(loaded.requests), regret_sample) if regret_sample else None,
        )
        results.append(replay_mode(mode, simulation, facts))
    _show(facts, results)
    if json_path is not None:
        _write(json_path, to_json(facts, results))
    if plot_path is not None:
        plot_results(plot_path, facts, results)


def replay_mode(mode: str, simulation: Simulation, facts: TraceFacts) -> ModeResult:
    """Run a simulation to its end and sum it up."""
    started = time.perf_counter()
    flights = simulation.run()
    ideal = round(facts.ideal_hit_rate * facts.prompt_tokens)
    return summarize(mode, simulation, flights, ideal_cached_tokens=ideal, real_seconds=time.perf_counter() - started)


def trace_facts(trace: Trace) -> TraceFacts:
    """What can be said of a trace without replaying it."""
    prompt_tokens = sum(request.input_tokens for request in trace.requests)
    return TraceFacts(
        trace=trace.name,
        requests=len(trace.requests),
        prompt_tokens=prompt_tokens,
        output_tokens=sum(request.output_tokens for request in trace.requests),
        span_seconds=trace.requests[-1].arrival_seconds,
        ideal_hit_rate=sum(ideal_cached_tokens(trace)) / prompt_tokens,
    )


def _show(facts: TraceFacts, results: list[ModeResult]) -> None:
    click.echo(render_table(facts, results))
    for text in (render_queue(results), render_regret(results), render_shadows(results)):
        if text:
            click.echo(f"\n{text}")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"the results cannot be written: {error}", param="json") from error
