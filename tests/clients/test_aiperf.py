"""AIPerf as load: its report has no error, and counts the tokens that the server counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dynamo.reference import demo_model_directory

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

REQUESTS, TOKENS = 12, 16
#: Endpoint -> flags. AIPerf reads no usage of a response that its length limit ended, so that one has room to end.
KINDS = {
    "chat": ["--output-tokens-mean", str(TOKENS), "--extra-inputs", "ignore_eos:true"],
    "responses": ["--output-tokens-mean", "400"],
}
TOKENIZER = "dynamo/demo"
REVISION = "0" * 40


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's tokenizer as Hugging Face's cache has models: offline, AIPerf looks nowhere else."""
    home = tmp_path_factory.mktemp("hf")
    folder = home / "hub" / f"models--{TOKENIZER.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    shutil.copytree(
        demo_model_directory(), folder / "snapshots" / REVISION, ignore=shutil.ignore_patterns("*.safetensors")
    )
    return home


def counted(served) -> dict[str, float]:
    """What the frontend has counted until now."""
    families = text_string_to_metric_families(httpx.get(f"{served.url}/metrics").text)
    samples = {}
    for sample in (sample for family in families for sample in family.samples):
        samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
    return {
        "requests": samples.get("dynamo_frontend_requests_total", 0.0),
        "prompt": samples.get("dynamo_frontend_input_sequence_tokens_sum", 0.0),
        "completion": samples.get("dynamo_frontend_output_tokens_total", 0.0),
    }


def report(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "profile_export_aiperf.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_profile_agrees_with_the_server(served, client_bin, run_offline, hub_cache, tmp_path, kind):
    before = counted(served)
    run_offline(
        [
            *(client_bin("aiperf") / "aiperf", "profile", "--url", served.url, "--model", "dynamo-demo"),
            *("--endpoint-type", kind, "--streaming", "--tokenizer", TOKENIZER, "--use-server-token-count"),
            *("--request-count", str(REQUESTS), "--concurrency", "3", "--synthetic-input-tokens-mean", "40"),
            *("--extra-inputs", "temperature:0", "--random-seed", "1", *KINDS[kind]),
            *("--artifact-dir", str(tmp_path), "--ui", "none"),
        ],
        HF_HOME=str(hub_cache),
    )
    found, after = report(tmp_path), counted(served)
    assert found["error_summary"] == []
    assert not found["was_cancelled"]
    assert found["request_count"]["avg"] == REQUESTS == after["requests"] - before["requests"]
    assert found["total_usage_prompt_tokens"]["avg"] == after["prompt"] - before["prompt"]
    assert found["total_usage_completion_tokens"]["avg"] == after["completion"] - before["completion"]
    if kind == "chat":
        assert (found["usage_completion_tokens"]["min"], found["usage_completion_tokens"]["max"]) == (TOKENS, TOKENS)
    assert 0 < found["time_to_first_token"]["avg"] <= found["request_latency"]["avg"]
