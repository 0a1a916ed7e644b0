"""Which process a flag of `dynamo serve` goes to."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

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


def test_each_process_gets_its_flags():
    arguments = ["--backend", "echo", "--strict", "--reply", "x", "--dry-run", "--", "--explain"]
    result = CliRunner().invoke(serve, arguments)
    assert result.exit_code == 0, result.output
    frontend, worker = (component["argv"] for component in json.loads(result.output)["components"])
    assert "--strict" in frontend
    assert "--explain" not in frontend
    assert worker[-3:] == ["--reply", "x", "--explain"]
