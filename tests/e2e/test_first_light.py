"""What the README promises, done as its reader would: SDK, curl, graph file, replicas, a killed worker, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import psutil
import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
MODEL = "dynamo-demo"
QUESTION = [{"role": "user", "content": "What is the capital of Norway?"}]


def sdk(served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0, timeout=30)


def asks_norway(client: openai.OpenAI, model: str = MODEL) -> str:
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)
    return answer.choices[0].message.content or ""


def test_the_openai_sdk_and_curl_get_whole_and_streamed_answers(serve):
    served = serve().until_ready()
    with sdk(served) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
        assert "Oslo" in (whole.choices[0].message.content or "")
        assert whole.usage is not None
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        stream = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage.model_copy(
            update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
        )
        completion = client.completions.create(
            model=MODEL, prompt="Once upon a time", max_tokens=5, temperature=0, extra_body={"of_another_server": 1}
        )
        assert completion.choices[0].finish_reason == "length"
        assert completion.usage.completion_tokens == 5
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="gpt-17", messages=QUESTION)
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9)
        assert caught.value.param == "temperature"
    curl = shutil.which("curl")
    if curl:
        body = json.dumps({"model": MODEL, "messages": QUESTION, "temperature": 0, "stream": True})
        command = [curl, "-sN", f"{served.url}/v1/chat/completions", "-H", "content-type: application/json", "-d", body]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        assert output.rstrip().endswith("data: [DONE]")


def test_the_printed_curl_line_and_python_snippet_work(serve):
    served = serve().until_ready()
    lines = served.text().split("\n")
    start = next(index for index, line in enumerate(lines) if line.startswith("  from openai import"))
    snippet = []
    for line in lines[start:]:
        if not line.strip():
            break
        snippet.append(line.removeprefix("  "))
    done = subprocess.run([sys.executable, "-c", "\n".join(snippet)], capture_output=True, text=True, timeout=60)
    assert "Oslo" in done.stdout, done.stderr
    curl_at = next(index for index, line in enumerate(lines) if line.startswith("  curl "))
    curl = "\n".join(lines[curl_at : curl_at + 2])
    done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60)
    assert "choices" in done.stdout, done.stderr


def test_one_shot_chat(serve):
    served = serve().until_ready()
    command = [sys.executable, "-m", "dynamo.cli", "chat", "--url", served.url, "What is the capital of Norway?"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Oslo" in done.stdout


def test_the_hello_graph_serves_the_same(serve):
    served = serve("-f", str(ROOT / "examples" / "01-hello" / "graph.yaml")).until_ready()
    with sdk(served) as client:
        assert "Oslo" in asks_norway(client, "demo")


def test_a_misspelt_variable_is_told_once(serve):
    """By `dynamo serve`, and by none of its children, who see it too."""
    served = serve("--backend", "echo", "--replicas", "2", env={"DYN_HTTP_PROT": "1"}).until_ready()
    assert served.stop() == 0
    assert served.text().count("DYN_HTTP_PROT is set, but nothing reads it") == 1


def test_a_killed_worker_is_restarted_and_requests_go_on(serve):
    served = serve("--replicas", "2").until_ready()
    with sdk(served) as client:
        assert "Oslo" in asks_norway(client)
        victim = served.workers("dynamo.worker")[0]
        os.kill(victim.pid, signal.SIGKILL)
        for _ in range(4):
            assert "Oslo" in asks_norway(client)
        served.until(lambda: len(served.workers("dynamo.worker")) == 2, "a second worker")
        assert victim.pid not in [process.pid for process in served.workers("dynamo.worker")]
        served.until(
            lambda: len(httpx.get(f"{served.url}/health").json()["instances"]) == 2, "both workers in discovery"
        )
        assert "Oslo" in asks_norway(client)


def test_a_single_killed_worker_comes_back(serve):
    served = serve().until_ready()
    os.kill(served.workers("dynamo.worker")[0].pid, signal.SIGKILL)
    served.until(lambda: not httpx.get(f"{served.url}/v1/models").json()["data"], "the model to vanish")
    served.until(lambda: httpx.get(f"{served.url}/v1/models").json()["data"], "the model to come back")
    with sdk(served) as client:
        assert "Oslo" in asks_norway(client)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_nothing_behind(serve, signum):
    served = serve("--replicas", "2").until_ready()
    children = served.processes()
    ports = {c.laddr.port for child in children for c in child.net_connections() if c.status == psutil.CONN_LISTEN}
    assert served.port in ports
    assert served.stop(signum) in (0, 130, 143)
    assert psutil.wait_procs(children, timeout=10)[1] == []
    for port in ports:
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", port)) != 0, f"something still listens on {port}"


def test_a_third_party_backend_is_installed_and_served(serve, tmp_path):
    site = tmp_path / "site"
    example = ROOT / "examples" / "02-custom-backend"
    command = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(example)]
    if shutil.which("uv") is None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(example)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    env = {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    served = serve("--backend", "my-backend", env=env).until_ready()
    with sdk(served) as client:
        (model,) = client.models.list()
        answer = client.completions.create(model=model.id, prompt="one two three", max_tokens=50, temperature=0)
        assert answer.choices[0].text
        assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_taken_port_names_the_flag(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "dynamo.cli", "serve", "--port", str(port), "--state-dir", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "--port" in done.stderr
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "nope"], ["no engine named 'nope'", "reference"]),
        (["--model", "/nonexistent/model"], ["/nonexistent/model"]),
        (["--router-mode", "psychic"], ["psychic", "round-robin"]),
        (["-f", "missing.yaml"], ["missing.yaml"]),
        (["--block-sise", "16"], ["--block-size"]),
    ],
)
def test_wrong_arguments_end_with_what_to_do(tmp_path, arguments, words):
    command = [sys.executable, "-m", "dynamo.cli", "serve", "--port", "0", "--state-dir", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    for word in words:
        assert word in output
    assert "Traceback" not in output


def test_a_model_directory_without_config_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    command = [sys.executable, "-m", "dynamo.cli", "serve", "--port", "0", "--model", str(tmp_path / "model")]
    done = subprocess.run([*command, "--state-dir", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "config.json" in done.stdout + done.stderr
