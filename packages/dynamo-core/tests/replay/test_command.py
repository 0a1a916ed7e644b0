"""``dynamo replay`` as its users see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dynamo.errors import ConfigError
from dynamo.replay.command import replay
from dynamo.replay.plot import plot_results
from dynamo.replay.report import TraceFacts
from dynamo.replay.results import ModeResult, Percentiles


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "small.jsonl"
    lines = [
        {"timestamp": 200 * n, "input_length": 1200, "output_length": 4, "hash_ids": [n % 3, 10 + n % 3, 99]}
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _run(*arguments: object):
    return CliRunner().invoke(replay, [str(argument) for argument in arguments], catch_exceptions=False)


def test_a_table_and_json_of_every_mode(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = _run(trace, "--router-mode", "round-robin, kv", "--workers", 2, "--json", out)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[0].startswith("small: 30 requests in 6 s, 36000 prompt and 120 output tokens; ideal hit rate 76.8%")
    assert [line.split()[0] for line in lines[3:5]] == ["round-robin", "kv"]
    document = json.loads(out.read_text())
    assert document["ideal_hit_rate"] == pytest.approx(27 * 1024 / 36000)
    even, aware = document["results"]
    assert (even["mode"], aware["mode"], even["workers"]) == ("round-robin", "kv", 2)
    assert even["hit_rate"] == pytest.approx(24 * 1024 / 36000)
    assert aware["hit_rate"] >= even["hit_rate"]
    assert even["ttft_seconds"]["p50"] > 0


def test_options_reach_the_workers(trace: Path, tmp_path: Path) -> None:
    perf = tmp_path / "perf.json"
    perf.write_text(json.dumps({"prefill": [[1, 2000], [9, 2000]], "decode": [[1, 1, 500], [2, 1, 500]]}))
    out = tmp_path / "out.json"
    options = ("--limit", 1, "--perf-model", perf, "--workers", 1, "--blocks-per-worker", 3)
    assert _run(trace, *options, "--json", out).exit_code == 0
    [result] = json.loads(out.read_text())["results"]
    assert result["mode"] == "round-robin"
    assert result["ttft_seconds"]["mean"] == pytest.approx(2.0)
    assert result["e2e_seconds"]["mean"] == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--router-mode", "round-robin,fastest"), "unknown router mode 'fastest'"),
        (("--speed", "0"), "--speed is 0.0"),
        (("--blocks-per-worker", "1"), "does not fit a worker"),
        (("--json", "/nowhere/out.json"), "cannot be written"),
        (("--perf-model", "/nowhere"), "performance data"),
    ],
)
def test_what_cannot_be_done_is_said(trace: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _run(trace, "--limit", 2, *arguments)


@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_where_the_results_go_is_looked_at_first(tmp_path: Path, flag: str) -> None:
    if flag == "--plot":
        pytest.importorskip("matplotlib", reason="plots need dynamo-core[plot]")
    with pytest.raises(ConfigError, match=rf"{flag} .*/no/out cannot be written: No such file"):
        _run(tmp_path / "no-trace.jsonl", flag, tmp_path / "no" / "out")
    kept, new = tmp_path / "kept", tmp_path / "new"
    kept.write_text("of an earlier replay")
    for path in (kept, new):
        with pytest.raises(ConfigError, match="no-trace"):
            _run(tmp_path / "no-trace.jsonl", flag, path)
    assert kept.read_text() == "of an earlier replay"
    assert not new.exists()


def test_a_plot_without_matplotlib_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ConfigError, match="matplotlib"):
        _run(tmp_path / "no-trace.jsonl", "--plot", tmp_path / "plot.png")


def test_a_trace_without_shared_prefixes_has_no_share_of_the_ideal(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,374,44\n")
    done = _run(path, "--workers", 1)
    assert done.output.splitlines()[3].split()[:3] == ["round-robin", "0.0%", "-"]


def _results() -> tuple[TraceFacts, list[ModeResult]]:
    times = Percentiles(1.0, 0.5, 2.0, 3.0)
    result = ModeResult("kv", 2, 3, 0, 0.3, 0.9, 1.1, 1.2, times, times, times, 10.0, 0.3, 5.0, 0, 1.0)
    return TraceFacts("small", 3, 100, 10, 9.0, 0.33), [result]


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need dynamo-core[plot]")
    path = tmp_path / "plot.png"
    plot_results(path, *_results())
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_results(tmp_path / "no" / "plot.png", *_results())


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ConfigError, match="matplotlib") as caught:
        plot_results(tmp_path / "plot.png", *_results())
    assert "dynamo-core[plot]" in caught.value.hint
