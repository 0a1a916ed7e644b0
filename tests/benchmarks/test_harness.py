"""The benchmark harness: what a row means, what is written, and when `--check` fails."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.harness.cli import benchmarks, execute, main
from benchmarks.harness.measure import alternate
from benchmarks.harness.report import cells, read_json, shortfalls, table
from benchmarks.harness.rows import Row

FAST = Row("speed", 30.0, "tokens/s", low=20.0, high=40.0, reference="peer", reference_value=20.0, bar=1.0)
SLOW = Row("speed", 10.0, "tokens/s", reference="peer", reference_value=20.0, bar=1.0)
CHEAP = Row("cpu", 2.0, "ms", better="lower", reference="peer", reference_value=6.0)


class Scripted:
    """A benchmark whose rows are given."""

    __doc__ = "A scripted benchmark."

    def __init__(self, *rows: Row) -> None:
        self.rows = rows

    def run(self, options):
        yield from self.rows


def asked(**given) -> argparse.Namespace:
    return argparse.Namespace(
        **{"name": "scripted", "quick": True, "only": "", "json": None, "plot": None, "check": False, **given}
    )


def test_a_ratio_above_one_is_better_in_both_directions():
    assert FAST.ratio == pytest.approx(1.5)
    assert CHEAP.ratio == pytest.approx(3.0)


def test_a_bar_holds_or_not_and_no_bar_says_nothing():
    assert (FAST.holds, SLOW.holds, CHEAP.holds) == (True, False, None)


def test_a_bar_without_anything_to_compare_with_does_not_hold():
    row = Row("speed", 10.0, "tokens/s", bar=1.0)
    assert row.ratio is None
    assert row.holds is False
    assert shortfalls([row]) == ["speed: no reference, the bar is 1x"]


def test_check_fails_only_when_a_bar_falls_short(capsys: pytest.CaptureFixture[str]):
    assert execute(Scripted(FAST, CHEAP), asked(check=True)) == 0
    assert execute(Scripted(FAST, SLOW), asked(check=True)) == 1
    assert "falls short: speed: 0.50x, the bar is 1x" in capsys.readouterr().out
    assert execute(Scripted(SLOW), asked()) == 0


def test_json_holds_every_field_and_reads_back(tmp_path: Path):
    path = tmp_path / "deep" / "rows.json"
    execute(Scripted(FAST), asked(json=path))
    [row] = read_json(path)
    assert {key: row[key] for key in ("ratio", "holds", "min", "max")} == {
        "ratio": 1.5,
        "holds": True,
        "min": 20.0,
        "max": 40.0,
    }
    assert row["command"] == 'nox -s "bench(scripted)" -- --quick'
    assert row["machine"]
    assert Row.from_json(row) == FAST
    assert json.loads(path.read_text("utf-8")) == [row]


def test_the_table_is_aligned_and_complete():
    lines = table([FAST, SLOW]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert cells(SLOW) == ("speed", "10", "-", "tokens/s", "peer", "20", "0.50x", ">= 1x", "NO")


def test_works_take_turns_and_the_first_round_does_not_count():
    calls = []

    def work(name: str, units: float):
        def once() -> float:
            calls.append(name)
            return units

        return once

    results = alternate({"a": work("a", 1.0), "b": work("b", 2.0)}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert results["a"].per_second.low <= results["a"].per_second.median <= results["a"].per_second.high


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["no-such-benchmark"])
    assert stop.value.code == 2
    assert "floor" in capsys.readouterr().err


def test_every_benchmark_says_what_it_measures():
    assert {"floor", "reference"} <= set(benchmarks())
    for name in benchmarks():
        first = Path("benchmarks", f"{name}.py")
        source = (Path(__file__).parents[2] / first).read_text("utf-8")
        assert source.startswith('"""')
        assert "def run(options: Options) -> Iterator[Row]:" in source


def test_only_the_rows_asked_for_are_shown_and_recorded(tmp_path, capsys):
    path = tmp_path / "out.json"
    execute(Scripted(FAST, CHEAP), asked(only="cp", json=path))
    assert FAST.name not in capsys.readouterr().out
    rows = read_json(path)
    assert [row["name"] for row in rows] == [CHEAP.name]
    assert '--only "cp"' in rows[0]["command"]
