"""A `dynamo serve` with the demo model, and the programs of others that `nox -s clients` has installed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.served import Served, serving

#: Folder with one environment per client, named like its requirements file; `nox -s clients` sets it.
ENVIRONMENTS = "DYNAMO_TEST_CLIENTS"
PROGRAM_SECONDS = 240.0
#: Clients that fetch price lists, tokenizers or model names must do without: nothing but this machine answers.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo model on the reference engine; not started where no client is installed."""
    if ENVIRONMENTS not in os.environ:
        pytest.skip("no client is installed here: nox -s clients")
    with serving(tmp_path_factory.mktemp("served")) as running:
        yield running.until_ready()


@pytest.fixture(scope="session")
def client_bin() -> Callable[[str], Path]:
    """``client_bin("litellm")``: where that client's programs are; skips where it is not installed."""

    def find(client: str) -> Path:
        folder = Path(os.environ[ENVIRONMENTS]) / client / "bin"
        if not (folder / "python").exists():
            pytest.skip(f"{client} is not installed here: nox -s clients")
        return folder

    return find


@pytest.fixture(scope="session")
def run_offline() -> Callable[..., str]:
    """Runs a program that reaches this machine only, and gives its output."""

    def run(command: Sequence[str | Path], **env: str) -> str:
        done = subprocess.run(
            command, env={**os.environ, **OFFLINE, **env}, capture_output=True, text=True, timeout=PROGRAM_SECONDS
        )
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def ask(client_bin, run_offline, served: Served) -> Callable[[str], dict[str, Any]]:
    """``ask("litellm")``: what ``ask_litellm.py`` prints, run in that client's environment."""

    def answers(client: str) -> dict[str, Any]:
        program = Path(__file__).parent / f"ask_{client}.py"
        output = run_offline([client_bin(client) / "python", program, served.url])
        return json.loads(output.splitlines()[-1])

    return answers
