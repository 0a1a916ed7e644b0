"""A PNG of one benchmark: each row's ratio beside its reference, and the bars."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.report import number
from benchmarks.harness.rows import Row

__all__ = ["write_png"]

GOOD, BAD, PLAIN = "#2a7f62", "#b03a2e", "#4a6fa5"
_LINE_CHARACTERS = 95


def write_png(path: Path, title: str, rows: Sequence[Row], machine: str) -> None:
    """Draw the rows that have a reference, as ratios; without any, the values' spread around their median."""
    from matplotlib.figure import Figure

    compared = [row for row in rows if row.ratio is not None]
    shown = compared or list(rows)
    figure = Figure(figsize=(9, 1.4 + 0.5 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    positions = list(range(len(shown)))[::-1]
    colors = [PLAIN if row.holds is None else GOOD if row.holds else BAD for row in shown]
    lengths = [row.ratio or 1.0 for row in shown]
    axes.barh(positions, lengths, color=colors, height=0.55)
    for position, row, length in zip(positions, shown, lengths, strict=True):
        if row.bar is not None:
            axes.plot([row.bar, row.bar], [position - 0.4, position + 0.4], color="black", linewidth=2)
        label = f" {number(row.value)} {row.unit}" + (f" against {number(row.reference_value)}" if compared else "")
        axes.text(length, position, label, va="center", fontsize=8)
    axes.set_yticks(positions, [row.name for row in shown], fontsize=8)
    axes.set_xlim(0, max(lengths) * 1.6)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.axvline(1.0, color="grey", linewidth=0.8, linestyle=":")
    references = sorted({row.reference for row in compared if row.reference})
    meaning = f"times better than {', '.join(references) or 'itself'} (black: the bar)"
    axes.set_xlabel(textwrap.fill(meaning, _LINE_CHARACTERS), fontsize=8)
    figure.suptitle(textwrap.fill(title, _LINE_CHARACTERS) + f"\n{machine}", fontsize=9, x=0.02, ha="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
