"""Several models behind one frontend: they appear and go with their workers, and each is called by its names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.processes import Deployment, Frontend, deployment, wait_until

pytestmark = pytest.mark.e2e

#: As hubs name models.
SLASHED = "org/some-model"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Deployment, Frontend]]:
    with deployment(tmp_path) as processes:
        processes.worker("--served-model-name", SLASHED, "--model-alias", "short-name")
        frontend = processes.frontend("--migration-wait-seconds", "0")
        processes.until_serving(frontend, 1, SLASHED)
        yield processes, frontend


def ask(frontend: Frontend, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    return httpx.post(f"{frontend.url}/v1/chat/completions", json=body, timeout=30)


def test_models_come_and_go(running):
    processes, frontend = running
    late = processes.worker("--served-model-name", "late")
    wait_until(lambda: "late" in frontend.models(), "the second model", *processes.processes)
    assert set(frontend.models()) == {SLASHED, "short-name", "late"}
    for name in frontend.models():
        answer = ask(frontend, name)
        assert (answer.status_code, answer.json()["model"]) == (200, name), answer.text

    late.kill()
    wait_until(lambda: "late" not in frontend.models(), "the end of the second model", *processes.processes)
    gone = ask(frontend, "late")
    assert (gone.status_code, gone.json()["error"]["code"]) == (503, "no_instances")
    assert int(gone.headers["retry-after"]) > 0
    assert httpx.get(f"{frontend.url}/v1/models/late/ready").status_code == 503
    unknown = ask(frontend, "never-there")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert "retry-after" not in unknown.headers
    assert ask(frontend, SLASHED).status_code == 200

    late.start()
    wait_until(lambda: ask(frontend, "late").status_code == 200, "the second model again", *processes.processes)


@pytest.mark.parametrize("name", [SLASHED, SLASHED.replace("/", "%2F"), "short-name"])
def test_a_model_is_found_at_its_path(running, name):
    _, frontend = running
    found = httpx.get(f"{frontend.url}/v1/models/{name}")
    assert (found.status_code, found.json()["id"]) == (200, name.replace("%2F", "/"))
    assert httpx.get(f"{frontend.url}/v1/models/{name}/ready").json()["ready"] is True
