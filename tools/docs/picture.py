"""Draws docs/explanation/architecture.png: `uv run --with matplotlib python -m tools.docs.picture`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["main"]

TARGET = Path(__file__).parents[2] / "docs" / "explanation" / "architecture.png"
INK, PROCESS, PART, PLUGIN, STATE = "#22313f", "#eef3f8", "#ffffff", "#fdf3dc", "#e8f2ea"
REQUEST, TOKENS, QUIET = "#1f5fa8", "#2a7f62", "#8a6d1f"


class Box(NamedTuple):
    """A rectangle by its lower left corner, in picture units."""

    x: float
    y: float
    width: float
    height: float
    text: str
    color: str = PART
    bold: bool = False


PROCESSES = [
    Box(2.9, 2.35, 4.6, 3.1, "frontend process", PROCESS, bold=True),
    Box(9.7, 3.95, 3.9, 1.5, "worker process", PROCESS, bold=True),
    Box(9.7, 2.0, 3.9, 1.5, "worker process", PROCESS, bold=True),
]
PARTS = [
    Box(0.2, 3.3, 1.6, 1.2, "client\n(curl, SDK,\ndynamo chat)"),
    Box(3.1, 4.25, 1.3, 0.7, "OpenAI\nHTTP"),
    Box(4.6, 4.25, 1.3, 0.7, "template,\ntokenizer"),
    Box(6.05, 4.25, 1.3, 0.7, "router", PLUGIN),
    Box(3.1, 2.7, 2.0, 0.7, "stop strings,\nSSE"),
    Box(5.35, 2.7, 2.0, 0.7, "detokenizer"),
    Box(9.9, 4.2, 1.5, 0.75, "worker host"),
    Box(11.7, 4.2, 1.7, 0.75, "engine", PLUGIN),
    Box(9.9, 2.25, 1.5, 0.75, "worker host"),
    Box(11.7, 2.25, 1.7, 0.75, "engine", PLUGIN),
    Box(2.9, 0.45, 4.6, 0.9, "scheduler (local): starts, restarts and\nstops the processes of a graph file", PLUGIN),
    Box(9.7, 0.45, 3.9, 0.9, "discovery (file, etcd, ...): who serves\nwhich model; model deployment cards", STATE),
]
#: start, end, color, label, where the label is
ARROWS: list[tuple[tuple[float, float], tuple[float, float], str, str, tuple[float, float]]] = [
    ((1.8, 4.2), (3.1, 4.6), REQUEST, "request", (2.3, 4.6)),
    ((4.4, 4.6), (4.6, 4.6), REQUEST, "", (0, 0)),
    ((5.9, 4.6), (6.05, 4.6), REQUEST, "", (0, 0)),
    ((7.35, 4.7), (9.9, 4.7), REQUEST, "request plane (tcp)", (8.6, 4.9)),
    ((7.35, 4.4), (9.9, 2.8), REQUEST, "", (0, 0)),
    ((11.4, 4.57), (11.7, 4.57), REQUEST, "", (0, 0)),
    ((11.4, 2.62), (11.7, 2.62), REQUEST, "", (0, 0)),
    ((9.9, 4.3), (7.35, 3.15), TOKENS, "tokens", (9.3, 3.62)),
    ((9.9, 2.45), (7.35, 2.9), TOKENS, "one frame per step and peer", (8.55, 2.3)),
    ((5.35, 3.05), (5.1, 3.05), TOKENS, "", (0, 0)),
    ((3.1, 3.05), (1.8, 3.6), TOKENS, "stream", (2.3, 3.05)),
    ((11.6, 2.0), (11.6, 1.35), QUIET, "register", (12.1, 1.65)),
    ((9.7, 0.9), (6.9, 2.35), QUIET, "watch", (8.75, 1.82)),
    ((5.2, 1.35), (5.2, 2.35), QUIET, "", (0, 0)),
]


def main() -> None:
    """Draw and write."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.2, 4.9), layout="constrained")
    axes = figure.add_subplot()
    for box in PROCESSES:
        _draw(axes, box, label_at_top=True)
    for box in PARTS:
        _draw(axes, box, label_at_top=False)
    for start, end, color, label, where in ARROWS:
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=end, xytext=start, arrowprops=arrow)
        if label:
            axes.text(*where, label, color=color, ha="center", va="center", fontsize=8.5)
    axes.text(0.2, 0.75, "yellow: chosen by\nname, from plugins", fontsize=8.5, color=INK)
    axes.set_xlim(0, 13.8)
    axes.set_ylim(0.3, 5.6)
    axes.set_aspect("equal")
    axes.axis("off")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(TARGET, dpi=110, metadata={"Software": None})


def _draw(axes: Any, box: Box, *, label_at_top: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = "round,pad=0,rounding_size=0.08"
    corner = (box.x, box.y)
    axes.add_patch(FancyBboxPatch(corner, box.width, box.height, boxstyle=shape, fc=box.color, ec=INK, lw=1.0))
    x = box.x + (0.15 if label_at_top else box.width / 2)
    y = box.y + (box.height - 0.22 if label_at_top else box.height / 2)
    weight = "bold" if box.bold else "normal"
    align = "left" if label_at_top else "center"
    axes.text(x, y, box.text, ha=align, va="center", fontsize=9, color=INK, fontweight=weight)


if __name__ == "__main__":
    main()
