"""`dynamo serve` as users run it: real processes, signals and ports."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from dynamo.cli.program import run as dynamo
from dynamo.errors import ConfigError
from dynamo.serve.command import serve

GRAPH = """
apiVersion: nvidia.com/v1alpha1
kind: DynamoGraphDeployment
metadata: {name: hello}
spec:
  services:
    Frontend:
      componentType: frontend
      extraPodSpec: {mainContainer: {image: "frontend:1"}}
    Worker:
      componentType: worker
      replicas: 2
      extraPodSpec:
        mainContainer: {command: [/bin/sh, -c], args: ["python3 -m dynamo.worker --backend reference"]}
"""


class Serve:
    """A running ``dynamo serve``; its output goes to a file, which is read as it grows."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.state_dir = directory / "state"
        self._log = directory / "output"
        command = [sys.executable, "-m", "dynamo.cli", "serve", "--state-dir", str(self.state_dir), *arguments]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.family: list[psutil.Process] = []

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str, timeout_seconds: float = 60) -> re.Match:
        deadline = time.monotonic() + timeout_seconds
        while not (found := re.search(pattern, self.output)):
            assert time.monotonic() < deadline, f"{pattern!r} did not come:\n{self.output}"
            assert self.process.poll() is None, f"ended before {pattern!r}:\n{self.output}"
            time.sleep(0.02)
        return found

    def ready(self) -> str:
        url = self.wait_for(r"Ready in [\d.]+ s: (\S+)").group(1)
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return url

    def component(self, name: str) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.process.pid).children() if f"dynamo.{name}" in p.cmdline()]

    def assert_nothing_left(self) -> None:
        _, alive = psutil.wait_procs(self.family, timeout=20)
        assert alive == []


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*arguments):
        running = Serve(tmp_path, *arguments)
        started.append(running)
        return running

    yield run
    for running in started:
        running.process.kill()
        running.process.wait()
        running.assert_nothing_left()


def ask(url, question="What is the capital of Norway?"):
    body = {"model": "dynamo-demo", "messages": [{"role": "user", "content": question}], "temperature": 0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())["choices"][0]["message"]["content"]


def ask_until_served(url, timeout_seconds=30):
    """A frontend hears of a new worker a moment after the worker says that it is ready; before, it answers 503."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return ask(url)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def port_is_free(url):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", int(url.rpartition(":")[2])))
    return True


@pytest.mark.e2e
def test_demo_answers_survives_kill_and_leaves_nothing(start):
    running = start("--port", "0")
    url = running.ready()
    assert "Oslo" in ask(url)
    output = running.output
    assert f"curl {url}/v1/chat/completions" in output
    assert "from openai import OpenAI" in output
    [worker] = running.component("worker")
    assert re.fullmatch("[0-9a-f]{64}", worker.environ()["DYN_PLANE_SECRET"])
    worker.kill()
    running.wait_for(r"worker was ended by SIGKILL; starts again in 0.5 s(?s:.*)worker .*is ready")
    assert "Oslo" in ask_until_served(url)
    running.family += psutil.Process(running.process.pid).children(recursive=True)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0
    running.assert_nothing_left()
    assert port_is_free(url)
    assert list((running.state_dir / "runs").iterdir()) == []


@pytest.mark.e2e
def test_graph_runs_and_is_changed_from_another_process(start, tmp_path, capsys):
    graph = tmp_path / "graph.yaml"
    graph.write_text(GRAPH)
    running = start("--file", str(graph), "--port", "0", "--log-level", "warning")
    url = running.ready()
    assert "Oslo" in ask(url)
    assert " INFO " not in running.output
    assert "note: Frontend: image frontend:1 is not used" in running.output
    here = ["--state-dir", str(running.state_dir)]
    assert dynamo(["serve", "--status", *here]) == 0
    assert "  Worker: 2 of 2 ready, generation 1\n    0: ready, process " in capsys.readouterr().out
    assert dynamo(["serve", "--scale", "Worker=1", *here]) == 0
    assert "  Worker: 1 of 1 ready, generation 2\n" in capsys.readouterr().out
    [before] = running.component("frontend")
    assert dynamo(["serve", "--restart", "Frontend", *here]) == 0
    [after] = running.component("frontend")
    assert before.pid != after.pid
    assert dynamo(["serve", "--scale", "Wroker=1", *here]) == 1
    assert "there is no component 'Wroker'" in capsys.readouterr().err
    running.family += psutil.Process(running.process.pid).children(recursive=True)
    running.process.terminate()
    assert running.process.wait(30) == 0


@pytest.mark.e2e
def test_sigkill_of_serve_leaves_nothing(start):
    running = start("--port", "0")
    url = running.ready()
    running.process.kill()
    running.process.wait()
    running.assert_nothing_left()
    assert port_is_free(url)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model"], "worker did not start: ended with exit code 78 (wrong configuration)"),
        (["--blok-size", "3"], "did you mean --block-size?"),
        (["--router-mode", "nearest"], "frontend did not start"),
    ],
)
def test_what_cannot_start_ends_with_the_reason(start, arguments, message):
    running = start("--port", "0", *arguments)
    assert running.process.wait(60) == 1
    error = running.output.rpartition("Error: ")[0] + running.output.partition("\nError: ")[2]
    assert message in error
    assert "its last lines were:" in error
    assert "Traceback" not in error


def test_interrupt_while_starting(start):
    running = start("--port", "0", "--ready-timeout", "60")
    running.wait_for("waiting for")
    running.family = psutil.Process(running.process.pid).children(recursive=True)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0
    running.assert_nothing_left()


def test_not_ready_in_time(start, tmp_path):
    graph = tmp_path / "graph.yaml"
    graph.write_text(GRAPH.replace("python3 -m dynamo.worker --backend reference", "exec sleep 600"))
    running = start("--file", str(graph), "--port", "0", "--ready-timeout", "0.5")
    assert running.process.wait(60) == 1
    assert re.search(r"Error: not ready after 0\.5 s: waiting for .*Worker \(0 of 2 ready\)", running.output)


def test_second_signal_kills_what_does_not_stop(start, tmp_path):
    stubborn = "trap '' TERM; echo stubborn; sleep 600 & wait; wait"
    graph = tmp_path / "graph.yaml"
    graph.write_text(
        GRAPH.replace("python3 -m dynamo.worker --backend reference", stubborn).replace(
            "mainContainer: {command", "{terminationGracePeriodSeconds: 600, mainContainer: {command"
        ).replace('wait"]}', 'wait"]}}')
    )  # fmt: skip
    running = start("--file", str(graph), "--port", "0")
    running.wait_for("Worker-1 | stubborn")
    running.wait_for("Worker-0 | stubborn")
    running.family = psutil.Process(running.process.pid).children(recursive=True)
    running.process.send_signal(signal.SIGINT)
    running.wait_for("stopping")
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(20) == 0
    running.assert_nothing_left()


def test_taken_port(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert dynamo(["serve", "--port", str(port)]) == 1
    err = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in err
    assert "choose another with --port" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "--port: input should be less than or equal to 65535"),
        (["--replicas", "0"], "--replicas: input should be greater than or equal to 1"),
        (["--backend", "nope"], "there is no engine named 'nope'"),
        (["Qwen/Qwen3-0.6B"], "did you mean --model Qwen/Qwen3-0.6B"),
        (["graph.yaml"], "did you mean --file graph.yaml"),
        (["--file", "no.yaml"], "cannot read graph file no.yaml"),
        (["--file", "g.yaml", "--max-model-len", "9"], "--max-model-len is for one process"),
        (["--file", "g.yaml", "--model", "x"], "--model does not go with --file"),
        (["--scale", "worker"], "--scale worker is not COMPONENT=N"),
        (["--scale", "worker=two"], "--scale worker=two is not COMPONENT=N"),
    ],
)
def test_wrong_arguments(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert dynamo(["serve", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_status_without_anything_running(capsys, tmp_path):
    assert dynamo(["serve", "--status", "--state-dir", str(tmp_path)]) == 1
    assert "nothing is running\nstart something with `dynamo serve`" in capsys.readouterr().err


def test_dry_run_prints_what_would_run():
    done = CliRunner().invoke(serve, ["--dry-run", "--replicas", "2", "--block-size", "8", "--", "--port", "7"])
    document = json.loads(done.stdout)
    [frontend, worker] = document["components"]
    assert frontend["argv"][-4:] == ["--http-port", "8000", "--router-mode", "round-robin"]
    assert worker["argv"][-4:] == ["--block-size", "8", "--port", "7"]
    assert worker["replicas"] == 2
    assert "SECRET" not in done.stdout


def test_dry_run_of_a_wrong_graph(tmp_path):
    graph = tmp_path / "graph.yaml"
    graph.write_text(GRAPH.replace("replicas", "replcas"))
    with pytest.raises(ConfigError, match="replcas"):
        CliRunner().invoke(serve, ["--dry-run", "-f", str(graph)], catch_exceptions=False)


def test_environment_of_the_shell_sets_flags(monkeypatch):
    monkeypatch.setenv("DYN_HTTP_PORT", "8111")
    monkeypatch.setenv("DYN_ROUTER_MODE", "random")
    done = CliRunner().invoke(serve, ["--dry-run"])
    assert json.loads(done.stdout)["components"][0]["argv"][-3:] == ["8111", "--router-mode", "random"]
    assert "DYN_HTTP_PORT" in os.environ
