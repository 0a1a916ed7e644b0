"""Adapters that vLLM would take and compute nonsense with are found before it sees them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dynamo.errors import InvalidRequest
from dynamo.reference import demo_model_directory
from dynamo.testing.lora_adapters import write_lora_adapter
from dynamo.vllm.lora_check import check_adapter


def model_like(directory: Path, **config) -> Path:
    """A directory with the demo model's config.json, changed."""
    directory.mkdir()
    known = json.loads((demo_model_directory() / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**known, **config}))
    return directory


@pytest.fixture
def base(tmp_path) -> Path:
    return Path(shutil.copytree(demo_model_directory(), tmp_path / "base"))


def test_an_adapter_of_the_model_passes(base, tmp_path):
    check_adapter("a", write_lora_adapter(tmp_path / "a", base), base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 64}, "is for 64, the base model has 128"),
        ({"num_hidden_layers": 9}, "not made for this model: it has no 'model.layers.4"),
        ({"num_attention_heads": 8}, "is for 256, the base model has 128"),
    ],
)
def test_adapters_of_other_models_are_refused(base, tmp_path, config, message):
    adapter = write_lora_adapter(tmp_path / "a", model_like(tmp_path / "other", **config))
    with pytest.raises(InvalidRequest, match=message):
        check_adapter("a", adapter, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 8}, "states rank 8, and .* has rank 4"),
        ({"r": None}, "adapter_config.json cannot be read"),
        ({"r": "4"}, "adapter_config.json cannot be read"),
    ],
)
def test_wrong_ranks_are_refused(base, tmp_path, change, message):
    adapter = write_lora_adapter(tmp_path / "a", base)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(InvalidRequest, match=message):
        check_adapter("a", adapter, base)


@pytest.mark.parametrize("weights", [b"", b"\xff" * 40, (2).to_bytes(8, "little") + b"[]"])
def test_broken_files_are_refused(base, tmp_path, weights):
    adapter = write_lora_adapter(tmp_path / "a", base)
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(InvalidRequest, match="LoRA 'a'"):
        check_adapter("a", adapter, base)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InvalidRequest, match="cannot read"):
        check_adapter("a", adapter, base)


def test_a_matrix_that_is_none_is_refused(base, tmp_path):
    adapter = write_lora_adapter(tmp_path / "a", base)
    header = {"model.layers.0.self_attn.q_proj.lora_A.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    encoded = json.dumps(header).encode()
    weights = len(encoded).to_bytes(8, "little") + encoded + b"\0" * 16
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(InvalidRequest, match="has rank -1"):
        check_adapter("a", adapter, base)


@pytest.mark.parametrize("change", ["quantized", "no-weights", "other-names"])
def test_what_cannot_be_compared_is_left_to_vllm(base, tmp_path, change):
    """Packed weights have other shapes, and some models other names in their files than when they run."""
    adapter = write_lora_adapter(tmp_path / "a", model_like(tmp_path / "other", hidden_size=64))
    if change == "quantized":
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    elif change == "no-weights":
        (base / "model.safetensors").unlink()
    else:
        path = adapter / "adapter_model.safetensors"
        length = int.from_bytes(path.read_bytes()[:8], "little")
        data = path.read_bytes()
        header = data[8 : 8 + length].replace(b"model.layers", b"visual.block")
        path.write_bytes(data[:8] + header + data[8 + length :])
    check_adapter("a", adapter, base)
