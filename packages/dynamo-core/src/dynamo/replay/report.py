"""Shows what replays measured: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dynamo.replay.results import ModeResult, Percentiles

__all__ = ["TraceFacts", "render_table", "to_json"]


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
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    requests = f"{facts.requests} requests in {facts.span_seconds:.0f} s"
    tokens = f"{facts.prompt_tokens} prompt and {facts.output_tokens} output tokens"
    lines = [f"{facts.trace}: {requests}, {tokens}; ideal hit rate {facts.ideal_hit_rate:.1%}", ""]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    lines += ["", "Times: mean (p50 / p90 / p99). Imbalance: most over mean uncached prompt tokens per worker."]
    return "\n".join(lines)


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
