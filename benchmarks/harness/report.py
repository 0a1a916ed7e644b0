"""Results for people (a table), for programs (JSON) and for `--check`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import Row

__all__ = ["cells", "read_json", "shortfalls", "table", "write_json"]

HEADER = ("name", "value", "min .. max", "unit", "reference", "its value", "ratio", "bar", "holds")


def cells(row: Row) -> tuple[str, ...]:
    """One row as text, in the order of the header."""
    spread = f"{number(row.low)} .. {number(row.high)}" if row.low is not None and row.high is not None else "-"
    return (
        row.name,
        number(row.value),
        spread,
        row.unit,
        row.reference or "-",
        number(row.reference_value),
        "-" if row.ratio is None else f"{row.ratio:.2f}x",
        "-" if row.bar is None else f">= {row.bar:g}x",
        {True: "yes", False: "NO", None: "-"}[row.holds],
    )


def number(value: float | None) -> str:
    """Three significant digits or all digits before the point."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(rows: Iterable[Row]) -> str:
    """The rows with aligned columns."""
    lines = [HEADER, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def write_json(path: Path, rows: Sequence[Row], *, command: str, machine: str) -> None:
    """Write a list of row objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row.to_json(command, machine) for row in rows], indent=2) + "\n", "utf-8")


def read_json(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_json` wrote."""
    data: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return data


def shortfalls(rows: Iterable[Row]) -> list[str]:
    """A sentence for every bar that is not reached."""
    return [
        f"{row.name}: {'no reference' if row.ratio is None else f'{row.ratio:.2f}x'}, the bar is {row.bar:g}x"
        for row in rows
        if row.holds is False
    ]
