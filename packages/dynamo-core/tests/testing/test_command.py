"""`dynamo conformance engine`: what is printed, and the exit status."""

from __future__ import annotations

import json

from click.testing import CliRunner

from dynamo.errors import ConfigError, PluginNotFound
from dynamo.testing.command import conformance
from dynamo.testing.engine_conformance import engine_checks


def _run(*arguments: str):
    return CliRunner().invoke(conformance, ["engine", *arguments])


def test_a_sound_engine_exits_with_0_and_a_line_for_each_check() -> None:
    result = _run("echo", "--only", "stream", "--only", "guided")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "ok       start  (model echo, context of 4096 tokens, 8192 blocks of 16)",
        "ok       stream.finish",
        "ok       stream.deltas",
        "ok       stream.steps",
        "ok       stream.usage",
        "skipped  guided: the engine does not declare guided",
        "skipped  guided.refusal: the engine does not declare guided",
        "",
        "echo: 5 ok, 2 skipped",
    ]


def test_engine_flags_reach_the_engine_and_a_failure_exits_with_1() -> None:
    result = _run("echo", "--only", "stream", "--", "--fail-after", "3")
    assert result.exit_code == 1
    assert "FAILED   stream.finish" in result.output
    assert "contract  Exactly one output of a stream, the last, has a finish_reason." in result.output
    assert "seen      raised EngineError: the echo engine fails after 3 tokens" in result.output
    assert "blocked  stream.deltas: stream.finish failed" in result.output
    assert result.output.endswith("echo: 1 ok, 1 failed, 3 not run because of a failure\n")


def test_an_unknown_engine_flag_is_reported_as_a_failing_start() -> None:
    result = _run("echo", "--only", "stream", "--", "--fail-aftr", "3")
    assert result.exit_code == 1
    assert "FAILED   start" in result.output
    assert "No such option" in result.output
    assert "--fail-after" in result.output


def test_json_is_one_document() -> None:
    result = _run("echo", "--json", "--only", "stream.finish", "--", "--fail-after", "1")
    report = json.loads(result.output)
    assert result.exit_code == 1
    assert (report["subject"], report["passed"]) == ("echo", False)
    by_id = {row["id"]: row for row in report["results"]}
    assert by_id["start"]["status"] == "ok"
    assert by_id["stream.finish"]["status"] == "failed"
    assert (
        by_id["stream.finish"]["seen"]
        == "raised EngineError: the echo engine fails after 1 tokens, as --fail-after says"
    )


def test_list_names_every_check_with_its_rule() -> None:
    result = _run("--list")
    lines = result.output.splitlines()
    assert len(lines) == len(engine_checks())
    assert any(line.startswith("abort.frees_kv ") and "frees the KV blocks" in line for line in lines)


def test_without_a_name_the_usage_says_where_names_come_from() -> None:
    result = _run()
    assert result.exit_code == 2
    assert "dynamo plugins" in result.output


def test_an_unknown_engine_is_an_error_that_lists_the_known_ones() -> None:
    result = _run("ecko")
    assert isinstance(result.exception, PluginNotFound)
    assert "echo" in str(result.exception)


def test_an_unknown_check_is_an_error() -> None:
    result = _run("echo", "--only", "nonsense")
    assert isinstance(result.exception, ConfigError)
