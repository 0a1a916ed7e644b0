"""The model deployment card that a worker makes of its engine's facts."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.protocols.engine import EngineCapabilities, EngineConfig
from dynamo.protocols.llm import DisaggregationMode
from dynamo.reference import demo_model_directory
from dynamo.worker.host import model_card
from dynamo.worker.settings import WorkerSettings


def test_facts_of_the_engine_reach_the_card():
    config = EngineConfig(
        model="m",
        context_length_tokens=4096,
        block_size_tokens=32,
        total_kv_blocks=500,
        max_batched_tokens=2048,
        dp_size=4,
        dtype="bfloat16",
        capabilities=EngineCapabilities(kv_events=True, resume=True),
        tool_call_parser="hermes",
        reasoning_parser="qwen3",
    )
    card = model_card(config, "vllm", WorkerSettings())
    shared = set(config.__struct_fields__) & set(card.__struct_fields__)
    assert {name: getattr(card, name) for name in shared} == {name: getattr(config, name) for name in shared}
    assert (card.backend, card.types, card.artifacts) == ("vllm", ["chat", "completions"], {})


def test_settings_of_the_worker_beat_the_engines_parsers():
    config = EngineConfig(model="m", tool_call_parser="hermes", reasoning_parser="qwen3")
    card = model_card(config, "x", WorkerSettings(tool_call_parser="json", model_aliases=["a", "b"]))
    assert (card.tool_call_parser, card.reasoning_parser, card.aliases) == ("json", "qwen3", ["a", "b"])


@pytest.mark.parametrize(
    ("setting", "mode"),
    [("agg", "aggregated"), ("aggregated", "aggregated"), ("prefill", "prefill"), ("decode", "decode")],
)
def test_the_mode_of_the_worker_is_on_the_card(setting, mode):
    card = model_card(EngineConfig(model="m"), "x", WorkerSettings(disaggregation_mode=setting))
    assert card.mode is DisaggregationMode(mode)


def test_embeddings_are_a_type_of_their_own():
    config = EngineConfig(model="m", capabilities=EngineCapabilities(embeddings=True))
    assert model_card(config, "x", WorkerSettings()).types == ["chat", "completions", "embedding"]


@pytest.fixture
def directory(tmp_path) -> Path:
    return Path(shutil.copytree(demo_model_directory(), tmp_path / "model"))


def test_files_are_named_by_hash_and_size(directory):
    card = model_card(EngineConfig(model="m", model_directory=directory), "x", WorkerSettings())
    for name, artifact in card.artifacts.items():
        data = (directory / name).read_bytes()
        assert (artifact.sha256, artifact.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert {"tokenizer.json", "config.json"} <= set(card.artifacts)
    assert not any(name.endswith(".safetensors") for name in card.artifacts)


def test_workers_of_one_model_agree_and_another_tokenizer_does_not(directory):
    config = EngineConfig(model="m", model_directory=directory)
    before = model_card(config, "x", WorkerSettings()).checksum()
    (directory / "config.json").write_bytes((directory / "config.json").read_bytes() + b"\n")
    assert model_card(config, "y", WorkerSettings(component="other")).checksum() == before
    (directory / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes() + b"\n")
    assert model_card(config, "x", WorkerSettings()).checksum() != before


def test_a_card_that_discovery_could_not_carry_is_refused_at_the_start():
    settings = WorkerSettings(model_aliases=[f"alias-{number:060}" for number in range(1000)])
    with pytest.raises(ConfigError, match=r"card of 'm' is \d+ bytes; the limit is 65536"):
        model_card(EngineConfig(model="m"), "x", settings)


def test_an_engine_without_a_name_for_its_model():
    with pytest.raises(ConfigError, match="engine x started without a model name") as caught:
        model_card(EngineConfig(model=""), "x", WorkerSettings())
    assert caught.value.hint == "pass --served-model-name"


def test_a_model_directory_that_went_away(tmp_path):
    with pytest.raises(ConfigError, match="gone"):
        model_card(EngineConfig(model="m", model_directory=tmp_path / "gone"), "x", WorkerSettings())
