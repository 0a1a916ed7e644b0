"""Writes LoRA adapters that fit a model, for tests of engines and deployments; they were trained on nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dynamo.reference.model_config import ModelConfig, load_model_config

__all__ = ["write_lora_adapter"]


def write_lora_adapter(
    directory: Path, model_directory: Path, *, rank: int = 4, scale: float = 0.5, seed: int = 0
) -> Path:
    """An adapter in PEFT's layout of the query, value and up projections of every layer; `directory`.

    Two seeds give two adapters. `scale` is the spread of the random matrices: at 0.5 a small model answers otherwise
    with the adapter than without it.

    Raises:
        ConfigError: the model directory cannot be read.
    """
    config = load_model_config(model_directory)
    random = np.random.default_rng(seed)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for layer in range(config.num_layers):
        for module, (inputs, outputs) in _modules(config).items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = random.normal(0, scale, (rank, inputs)).astype("<f4")
            tensors[f"{name}.lora_B.weight"] = random.normal(0, scale, (outputs, rank)).astype("<f4")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({module.rpartition(".")[2] for module in _modules(config)}),
        "base_model_name_or_path": str(model_directory),
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    _write_tensors(directory / "adapter_model.safetensors", tensors)
    return directory


def _modules(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Adapted modules of a layer, with the sizes of their inputs and outputs."""
    return {
        "self_attn.q_proj": (config.hidden_size, config.num_heads * config.head_dim),
        "self_attn.v_proj": (config.hidden_size, config.num_kv_heads * config.head_dim),
        "mlp.up_proj": (config.hidden_size, config.intermediate_size),
    }


def _write_tensors(path: Path, tensors: dict[str, npt.NDArray[np.float32]]) -> None:
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    encoded = json.dumps(header).encode()
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
