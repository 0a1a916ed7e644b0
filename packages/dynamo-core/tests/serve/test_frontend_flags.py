"""Which process a flag of `dynamo serve` goes to."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dynamo.errors import ConfigError
from dynamo.serve.command import serve
from dynamo.serve.frontend_flags import split_frontend_flags


@pytest.mark.parametrize(
    ("argv", "frontend", "others"),
    [
        (["--strict", "--max-model-len", "9"], ["--strict"], ["--max-model-len", "9"]),
        (["--request-log", "f", "--port", "1"], ["--request-log", "f"], ["--port", "1"]),
        (["--request-log=f"], ["--request-log=f"], []),
        (["--no-router-kv-events"], ["--no-router-kv-events"], []),
        (["--router-prefill-load-scale", "2"], ["--router-prefill-load-scale", "2"], []),
        (["--router-mode", "kv"], [], ["--router-mode", "kv"]),  # an option of `dynamo serve`
        (["--drain-grace-seconds", "1"], [], ["--drain-grace-seconds", "1"]),  # a flag of the worker host too
        (["--http-port", "1"], [], ["--http-port", "1"]),  # `dynamo serve` gives the port
        (["--", "--strict"], [], ["--", "--strict"]),
        (["--strict", "--", "--strict"], ["--strict"], ["--", "--strict"]),
        (["--request-log"], ["--request-log"], []),  # the frontend says that its value is missing
        ([], [], []),
    ],
)
def test_the_split(argv, frontend, others):
    assert split_frontend_flags(argv) == (frontend, others)


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        (["--replica", "2"], "--replicas"),
        (["--replcas=2"], "--replicas"),
        (["--max-model-len", "9", "--prot", "1"], "--port"),
        (["--dry-runn"], "--dry-run"),
    ],
)
def test_a_misspelt_flag_is_refused_before_anything_starts(flags, meant):
    result = CliRunner().invoke(serve, ["--backend", "echo", "--dry-run", *flags])
    assert isinstance(result.exception, ConfigError)
    assert f"did you mean {meant}?" in result.exception.message
    assert "--" in result.exception.hint
    assert result.output == ""


@pytest.mark.parametrize("flags", [["--", "--replica", "2"], ["--max-model-len", "9"], ["--load-format", "dummy"]])
def test_flags_of_the_engine_pass(flags):
    result = CliRunner().invoke(serve, ["--backend", "echo", "--dry-run", *flags])
    assert result.exit_code == 0, result.output
    worker = json.loads(result.output)["components"][1]["argv"]
    assert worker[-2:] == [flag for flag in flags if flag != "--"]


def test_each_process_gets_its_flags():
    arguments = ["--backend", "echo", "--strict", "--reply", "x", "--dry-run", "--", "--explain"]
    result = CliRunner().invoke(serve, arguments)
    assert result.exit_code == 0, result.output
    frontend, worker = (component["argv"] for component in json.loads(result.output)["components"])
    assert "--strict" in frontend
    assert "--explain" not in frontend
    assert worker[-3:] == ["--reply", "x", "--explain"]
