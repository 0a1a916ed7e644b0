"""docs/reference/benchmarks.md, from the results in `benchmarks/recorded`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.report import HEADER, cells, read_json
from benchmarks.harness.rows import Row

__all__ = ["RECORDED", "page"]

RECORDED = Path(__file__).parents[1] / "recorded"

_INTRO = """# Benchmarks

<!-- Generated from benchmarks/recorded/*.json by `nox -s docs -- --write`. -->

Each benchmark prints a table and, asked for, writes JSON and a picture; its references run in the same run, in turn
with what they are compared with. A value is the median of several runs, beside the least and the greatest. A ratio
above 1 is better than the reference. `--check` fails when a ratio is below its bar. A load above 0 beside the machine
says that it had other work: values suffer from that, ratios to what ran beside it less. Benchmarks are never part of
`nox -s tests`. The results below are those in `benchmarks/recorded`.

```console
$ nox -s "bench(floor)"
$ nox -s "bench(reference)" -- --quick --check
$ nox -s "bench(reference)" -- --json results.json --plot results.png
```
"""


def page() -> str:
    """The page: one table per recorded benchmark, and its picture if there is one."""
    parts = [_INTRO]
    for path in sorted(RECORDED.glob("*.json")):
        rows = read_json(path)
        lines = [HEADER, tuple("---" for _ in HEADER), *(cells(Row.from_json(row)) for row in rows)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        where = f"Command: `{rows[0]['command']}`. Machine: {rows[0]['machine']}."
        picture = path.with_suffix(".png")
        shown = f"\n![{path.stem}](../../benchmarks/recorded/{picture.name})\n" if picture.exists() else ""
        parts.append(f"## {path.stem}\n\n{where}\n\n{table}\n{shown}")
    return "\n".join(parts)
