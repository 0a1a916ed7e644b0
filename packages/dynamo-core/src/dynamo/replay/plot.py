"""Draws replays as one PNG. matplotlib is optional and imported here alone, when a plot was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamo.errors import ConfigError
from dynamo.replay.report import TraceFacts
from dynamo.replay.results import ModeResult

__all__ = ["check_outputs", "plot_results"]


def check_outputs(json_path: Path | None, plot_path: Path | None) -> None:
    """Refuse, before hours of replay, files that the results cannot be written to.

    Raises:
        ConfigError: one cannot be opened, or there is no matplotlib for the plot; the message names the flag.
    """
    if plot_path is not None:
        _matplotlib()
    for flag, path in (("--json", json_path), ("--plot", plot_path)):
        if path is not None:
            _check_writable(path, flag)


def plot_results(path: Path, facts: TraceFacts, results: Sequence[ModeResult]) -> None:
    """Bars per mode: hit rate with the ideal, imbalance, TTFT and end-to-end percentiles.

    Raises:
        ConfigError: matplotlib is not installed, or `path` cannot be written.
    """
    figure_class, canvas_class = _matplotlib()
    modes = [result.mode for result in results]
    figure = figure_class(figsize=(11, 7), layout="constrained")
    canvas_class(figure)
    figure.suptitle(f"{facts.trace}: {facts.requests} requests on {results[0].workers} workers")
    hits, balance, ttft, e2e = figure.subplots(2, 2).flat
    hits.bar(modes, [100 * result.hit_rate for result in results])
    hits.axhline(100 * facts.ideal_hit_rate, color="black", linestyle="--", linewidth=1, label="ideal")
    hits.set(title="Prompt tokens found in the cache", ylabel="%")
    hits.legend()
    _grouped(
        balance,
        modes,
        {
            "whole trace": [result.imbalance for result in results],
            "60 s windows, p90": [result.window_imbalance_p90 for result in results],
        },
    )
    balance.set(title="Uncached tokens per worker", ylabel="most / mean")
    for axes, title, times in (
        (ttft, "Time to first token", [result.ttft_seconds for result in results]),
        (e2e, "End to end", [result.e2e_seconds for result in results]),
    ):
        groups = {name: [getattr(one, name) for one in times] for name in ("mean", "p50", "p90", "p99")}
        _grouped(axes, modes, groups)
        axes.set(title=title, ylabel="s", yscale="log")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise ConfigError(f"the plot cannot be written: {error}", param="plot") from error


def _check_writable(path: Path, flag: str) -> None:
    is_new = not path.exists()
    try:
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise ConfigError(
            f"{flag} {path} cannot be written: {error.strerror}", param=flag, hint="nothing was replayed yet"
        ) from error


def _matplotlib() -> tuple[Any, Any]:
    """Figure and canvas, without pyplot and its global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "plots need matplotlib, which is not installed", param="plot", hint="pip install 'dynamo-core[plot]'"
        ) from error
    return Figure, FigureCanvasAgg


def _grouped(axes: Any, modes: Sequence[str], groups: dict[str, list[float]]) -> None:
    """One group of bars per mode."""
    width = 0.8 / len(groups)
    for number, (label, values) in enumerate(groups.items()):
        positions = [index - 0.4 + width * (number + 0.5) for index in range(len(modes))]
        axes.bar(positions, values, width, label=label)
    axes.set_xticks(range(len(modes)), modes)
    axes.legend(fontsize="small")
