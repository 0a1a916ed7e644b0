"""LoRA adapters of real processes: loaded at one of two workers while they run, called as a model, unloaded again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dynamo.reference import demo_model_directory
from dynamo.testing.lora_adapters import write_lora_adapter
from tests.e2e.processes import Deployment, Frontend, Process, deployment, wait_until

pytestmark = pytest.mark.e2e

MODEL = "dynamo-demo"
PROMPT = "The quick brown fox jumps over the lazy dog, and then it does so again and again."


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Deployment, Frontend, list[Process]]]:
    env = {"DYN_LORA_ENABLED": "true", "DYN_LORA_PATH": str(tmp_path / "loras")}
    early = write_lora_adapter(tmp_path / "early", demo_model_directory(), seed=7)
    with deployment(tmp_path / "run", env) as made:
        workers = [
            made.worker("--lora-modules", f"early={early}", backend="reference"),
            made.worker(backend="reference"),
        ]
        frontend = made.frontend("--router-mode", "kv", "--explain", "--migration-wait-seconds", "0")
        made.until_serving(frontend, 2, MODEL)
        yield made, frontend, workers


def ask(frontend: Frontend, model: str) -> dict[str, Any]:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    return httpx.post(f"{frontend.url}/v1/completions", json=body, timeout=30).raise_for_status().json()


def text(frontend: Frontend, model: str) -> str:
    return str(ask(frontend, model)["choices"][0]["text"])


def until_listed(made: Deployment, frontend: Frontend, *names: str) -> None:
    wait_until(lambda: set(frontend.models()) == {MODEL, *names}, f"models {names}", *made.processes)


def test_an_adapter_lives_and_goes_while_the_workers_run(running, tmp_path) -> None:
    made, frontend, workers = running
    until_listed(made, frontend, "early")
    directory = write_lora_adapter(tmp_path / "loras" / "late", demo_model_directory(), seed=8)
    loras = f"{workers[1].system_url}/v1/loras"
    body = {"lora_name": "late", "source": {"uri": directory.as_uri()}}
    assert httpx.post(loras, json=body, timeout=30).status_code == 200
    until_listed(made, frontend, "early", "late")

    answers = {model: text(frontend, model) for model in (MODEL, "early", "late")}
    assert len(set(answers.values())) == 3
    served = [worker.metric("dynamo_component_requests_total") for worker in workers]
    for model in ("early", "late", "late"):
        assert text(frontend, model) == answers[model]
    now = [worker.metric("dynamo_component_requests_total") for worker in workers]
    assert [count - before for count, before in zip(now, served, strict=True)] == [1, 2]
    assert ask(frontend, "late")["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    decision = httpx.get(f"{frontend.url}/debug/routing", timeout=10).json()["decisions"][0]
    assert (decision["model"], len(decision["candidates"])) == ("late", 1)  # who lacks it is no candidate
    wait_until(  # the index knows the adapter's blocks by the adapter's name
        lambda: _overlap(frontend, "late") > 0, "blocks of the adapter in the index", *made.processes
    )

    assert httpx.post(loras, json={**body, "lora_name": MODEL}, timeout=30).status_code == 409
    assert httpx.post(loras, json={**body, "source": {"uri": "file:///etc"}}, timeout=30).status_code == 400
    (directory / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    assert httpx.post(loras, json={**body, "lora_name": "corrupt"}, timeout=30).status_code == 400

    assert httpx.delete(f"{loras}/late", timeout=30).status_code == 200
    until_listed(made, frontend, "early")
    gone = httpx.post(f"{frontend.url}/v1/completions", json={"model": "late", "prompt": "x"}, timeout=30)
    assert (gone.status_code, gone.headers["retry-after"]) == (503, "2")
    assert httpx.delete(f"{loras}/late", timeout=30).status_code == 404
    unknown = httpx.post(f"{frontend.url}/v1/completions", json={"model": "never", "prompt": "x"}, timeout=30)
    assert unknown.status_code == 404
    assert text(frontend, MODEL) == answers[MODEL]

    workers[0].kill()
    until_listed(made, frontend)


def _overlap(frontend: Frontend, model: str) -> int:
    ask(frontend, model)
    decision = httpx.get(f"{frontend.url}/debug/routing", timeout=10).json()["decisions"][0]
    return max(candidate["overlap_blocks"] for candidate in decision["candidates"])


def test_a_worker_does_not_start_with_a_broken_adapter(tmp_path) -> None:
    with deployment(tmp_path / "run") as made:
        worker = made.worker("--lora-modules", f"a={tmp_path / 'none'}", backend="reference")
        assert worker.wait(60) == 78
        assert "there is no adapter_config.json" in worker.text()
