from __future__ import annotations

import json

import numpy as np
import pytest

from dynamo.errors import InvalidRequest
from dynamo.reference.lora import load_lora_adapter
from dynamo.reference.model_config import load_model_config


@pytest.fixture
def llama_config(model_directory):
    return load_model_config(model_directory("llama"))


@pytest.fixture
def adapter(tiny_models, tmp_path):
    """Write an adapter whose configuration and tensors a function may change."""

    def write(change_config=None, change_tensors=None):
        directory = tiny_models.write_lora(tmp_path / "adapter")
        config, tensors = tiny_models.lora_config(), tiny_models.lora_tensors()
        if change_config:
            config |= change_config
        if change_tensors:
            change_tensors(tensors)
        (directory / "adapter_config.json").write_text(json.dumps(config))
        tiny_models.write_safetensors(directory / "adapter_model.safetensors", tensors)
        return directory

    return write


def test_fused_matrices_equal_the_separate_ones(tiny_models, adapter, llama_config):
    loaded = load_lora_adapter("a", adapter(), llama_config, max_rank=8)
    tensors = tiny_models.lora_tensors()
    x = tiny_models.uniform("input", (3, 48), 1.0)
    prefix = "base_model.model.model.layers.2.self_attn."
    scale = 8 / 4

    def separate(name: str) -> np.ndarray:
        return x @ tensors[f"{prefix}{name}.lora_A.weight"].T @ tensors[f"{prefix}{name}.lora_B.weight"].T * scale

    delta = loaded.layers[2]["qkv"]
    fused = x @ delta.down @ delta.up
    expected = np.concatenate([separate("q_proj"), np.zeros((3, 24), np.float32), separate("v_proj")], axis=1)
    np.testing.assert_allclose(fused, expected, atol=1e-5)


def test_rank_stabilised_scale(adapter, llama_config):
    plain = load_lora_adapter("a", adapter(), llama_config, max_rank=8)
    stable = load_lora_adapter("a", adapter({"use_rslora": True}), llama_config, max_rank=8)
    np.testing.assert_allclose(stable.layers[0]["down"].up, plain.layers[0]["down"].up * 2, rtol=1e-6)
    assert stable.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 5}, "rank 5 and this base model need"),
        ({"r": 128}, "rank 128; this engine takes 1 to 8"),
        ({"r": 0}, "rank 0"),
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias all"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"r": None}, "not a valid adapter configuration"),
    ],
)
def test_other_ranks_and_variants_are_refused(adapter, llama_config, config, message):
    with pytest.raises(InvalidRequest, match=message):
        load_lora_adapter("a", adapter(config), llama_config, max_rank=8)


def test_adapters_of_another_base_are_refused(adapter, model_directory, llama_config):
    wide = load_model_config(model_directory("mistral"))  # its heads are wider
    with pytest.raises(InvalidRequest, match="does not fit"):
        load_lora_adapter("a", adapter(), wide, max_rank=8)

    def deeper(tensors):
        tensors["base_model.model.model.layers.3.mlp.up_proj.lora_A.weight"] = np.zeros((4, 48), np.float32)

    with pytest.raises(InvalidRequest, match=r"not made for this base model.*layers\.3"):
        load_lora_adapter("a", adapter(change_tensors=deeper), llama_config, max_rank=8)

    def foreign(tensors):
        tensors["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"] = np.zeros((4, 48), np.float32)

    with pytest.raises(InvalidRequest, match="c_attn"):
        load_lora_adapter("a", adapter(change_tensors=foreign), llama_config, max_rank=8)


def test_half_a_pair_and_missing_files_are_refused(adapter, tmp_path, llama_config):
    def halve(tensors):
        del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]

    with pytest.raises(InvalidRequest, match="only half of layer 1 q_proj"):
        load_lora_adapter("a", adapter(change_tensors=halve), llama_config, max_rank=8)
    with pytest.raises(InvalidRequest, match=r"cannot read .*adapter_config\.json"):
        load_lora_adapter("a", tmp_path / "absent", llama_config, max_rank=8)
    directory = adapter()
    (directory / "adapter_model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(InvalidRequest, match="not a valid safetensors file"):
        load_lora_adapter("a", directory, llama_config, max_rank=8)
