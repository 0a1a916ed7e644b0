"""Shows what replays measured: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dynamo.replay.forking import RegretSample
from dynamo.replay.results import ModeResult, Percentiles, QueueResult

__all__ = ["TraceFacts", "render_queue", "render_regret", "render_shadows", "render_table", "to_json"]


class TraceFacts(msgspec.Struct, frozen=True):
    """What holds for every mode."""

    trace: str
    requests: int
    prompt_tokens: int
    output_tokens: int
    span_seconds: float
    """From the first arrival to the last."""
    ideal_hit_rate: float
    """Of one cache without bounds."""


def to_json(facts: TraceFacts, results: Sequence[ModeResult]) -> bytes:
    """One object: the facts and, under ``results``, one object per mode."""
    document = {**msgspec.to_builtins(facts), "results": msgspec.to_builtins(results)}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def render_table(facts: TraceFacts, results: Sequence[ModeResult]) -> str:
    """A line on the trace, and a row per mode; times in milliseconds, as p50 / p90 / p99 behind the mean."""
    header = ["mode", "hit rate", "of ideal", "imbalance", "60 s p90", "TTFT ms", "ITL ms", "E2E ms", "req/s", "tok/s"]
    rows = [header, *(_row(result) for result in results)]
    requests = f"{facts.requests} requests in {facts.span_seconds:.0f} s"
    tokens = f"{facts.prompt_tokens} prompt and {facts.output_tokens} output tokens"
    lines = [f"{facts.trace}: {requests}, {tokens}; ideal hit rate {facts.ideal_hit_rate:.1%}", ""]
    lines += _aligned(rows)
    lines += ["", "Times: mean (p50 / p90 / p99). Imbalance: most over mean uncached prompt tokens per worker."]
    return "\n".join(lines)


def render_regret(results: Sequence[ModeResult]) -> str:
    """A row per mode whose decisions were sampled; empty without any."""
    header = ["mode", "decisions", "regret ms", "positive ms", "p90 ms", "beaten", "predicted ms", "off by ms"]
    rows = [[result.mode, *_regret_cells(result.regret)] for result in results if result.regret is not None]
    if not rows:
        return ""
    note = "Regret: time to the first token at the worker chosen, minus at the best of the others, simulated."
    return "\n".join([*_aligned([header, *rows]), "", note])


def render_shadows(results: Sequence[ModeResult]) -> str:
    """A row per mode and policy that looked on; empty without any."""
    header = ["mode", "policy", "agreement", "hit rate", "imbalance", "predicted TTFT ms", "errors"]
    rows = [
        [result.mode, *_policy_cells(policy)]
        for result in results
        if result.shadows is not None
        for policy in result.shadows["policies"]
    ]
    if not rows:
        return ""
    note = "Shadows chose among workers as the live policy made them; a mode of its own shows where they would lead."
    return "\n".join([*_aligned([header, *rows]), "", note])


def render_queue(results: Sequence[ModeResult]) -> str:
    """A row per mode and priority of requests; empty where the router had no queue."""
    header = ["mode", "refused", "waited", "wait ms", "priority", "TTFT ms"]
    rows = [
        [result.mode, str(result.refused), *_queue_cells(result.queue), str(priority), _milliseconds(ttft, 0)]
        for result in results
        if result.queue is not None
        for priority, ttft in result.queue.ttft_seconds_by_priority.items()
    ]
    if not rows:
        return ""
    note = "The wait in the router's queue, of the requests that waited there; it is part of the TTFT."
    return "\n".join([*_aligned([header, *rows]), "", note])


def _queue_cells(queue: QueueResult) -> list[str]:
    return [str(queue.waited), _milliseconds(queue.wait_seconds, 0)]


def _regret_cells(sample: RegretSample) -> list[str]:
    seconds = (sample.mean_seconds, sample.mean_positive_seconds, sample.p90_seconds)
    guesses = (sample.predicted_mean_seconds, sample.prediction_error_seconds)
    return [
        str(sample.decisions),
        *(f"{value * 1000:.0f}" for value in seconds),
        f"{sample.beaten:.0%}",
        *("-" if value is None else f"{value * 1000:.0f}" for value in guesses),
    ]


def _policy_cells(policy: dict[str, Any]) -> list[str]:
    hits, ttft = policy["hit_rate"], policy["predicted_ttft_seconds"]
    return [
        policy["policy"],
        f"{policy['agreement']:.1%}",
        "-" if hits is None else f"{hits:.1%}",
        f"{policy['imbalance']:.2f}",
        "-" if ttft is None else f"{ttft * 1000:.0f}",
        str(policy.get("errors", 0)),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _row(result: ModeResult) -> list[str]:
    return [
        result.mode,
        f"{result.hit_rate:.1%}",
        "-" if result.ideal_share is None else f"{result.ideal_share:.1%}",
        f"{result.imbalance:.2f}",
        f"{result.window_imbalance_p90:.2f}",
        _milliseconds(result.ttft_seconds, 0),
        _milliseconds(result.itl_seconds, 1),
        _milliseconds(result.e2e_seconds, 0),
        f"{result.requests_per_second:.2f}",
        f"{result.output_tokens_per_second:.0f}",
    ]


def _milliseconds(times: Percentiles, digits: int) -> str:
    mean, *percentiles = (f"{seconds * 1000:.{digits}f}" for seconds in (times.mean, times.p50, times.p90, times.p99))
    return f"{mean} ({' / '.join(percentiles)})"
