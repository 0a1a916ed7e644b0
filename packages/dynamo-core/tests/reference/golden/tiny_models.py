"""Tiny random models, the same bits everywhere: their weights need not be checked in.

Used by the tests of the reference engine, and by ``tools/reference_golden/make_golden.py``, which runs them through
transformers. Only raw Philox output is used, whose stream numpy keeps stable.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

VOCAB = 96
PROMPT_LENGTHS = (33, 5, 50)
NEW_TOKENS = 20

_BASE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_LLAMA = {**_BASE, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_QWEN2 = {**_BASE, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def _rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10_000.0, **parameters}}


CASES: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "tie_word_embeddings": True, "rope_theta": 500.0},
    "llama-bias": {**_LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "llama-linear": {**_LLAMA, "rope_theta": 10_000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-dynamic": {**_LLAMA, **_rope("dynamic", factor=2.0)},
    "llama-llama3": {
        **_LLAMA,
        **_rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    },
    "llama-yarn": {**_LLAMA, **_rope("yarn", factor=4.0, original_max_position_embeddings=32)},
    "qwen2": {**_QWEN2, **_rope("default")},
    "qwen2-window": {
        **_QWEN2,
        **_rope("default"),
        "use_sliding_window": True,
        "sliding_window": 12,
        "max_window_layers": 1,
    },
    "qwen3": {
        **_BASE,
        **_rope("default"),
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
    "mistral": {
        **_BASE,
        **_rope("default"),
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "head_dim": 16,
        "sliding_window": 10,
    },
}
LORA_BASE = "llama"
LORA_RANK = 4


def uniform(name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Values in [-scale, scale), float32, that depend on `name` and nothing else."""
    count = int(np.prod(shape))
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(count)
    return (((raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0) * scale).astype(np.float32).reshape(shape)


def prompt(case: str, length: int, draw: int) -> list[int]:
    """The `draw`-th random prompt; ids 0 to 2 are left to special tokens."""
    row = uniform(f"{case}/prompt/{length}/{draw}", (length,), 1.0)
    return (3 + ((row + 1) / 2 * (VOCAB - 3)).astype(int)).tolist()


def tensors(case: str) -> dict[str, np.ndarray]:
    """All weights of a case, by their Hugging Face names."""
    return {
        name: 1.0 + uniform(f"{case}/{name}", shape, 0.3)
        if name.endswith("norm.weight")
        else uniform(f"{case}/{name}", shape, 0.35 if len(shape) == 2 else 0.2)
        for name, shape in shapes(CASES[case]).items()
    }


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of a configuration."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    qwen2 = config["model_type"] == "qwen2"
    attention_bias = config.get("attention_bias", False)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        linears = {
            "self_attn.q_proj": (queries, hidden, attention_bias or qwen2),
            "self_attn.k_proj": (keys, hidden, attention_bias or qwen2),
            "self_attn.v_proj": (keys, hidden, attention_bias or qwen2),
            "self_attn.o_proj": (hidden, queries, attention_bias),
            "mlp.gate_proj": (intermediate, hidden, config.get("mlp_bias", False)),
            "mlp.up_proj": (intermediate, hidden, config.get("mlp_bias", False)),
            "mlp.down_proj": (hidden, intermediate, config.get("mlp_bias", False)),
        }
        for name, (rows, columns, bias) in linears.items():
            found[f"{prefix}{name}.weight"] = (rows, columns)
            if bias:
                found[f"{prefix}{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}{name}.weight"] = (hidden,)
        if config["model_type"] == "qwen3":
            found[f"{prefix}self_attn.q_norm.weight"] = found[f"{prefix}self_attn.k_norm.weight"] = (dim,)
    found["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    return found


def lora_tensors(rank: int = LORA_RANK) -> dict[str, np.ndarray]:
    """An adapter for `LORA_BASE` on some of its projections, by PEFT's names."""
    found = {}
    for name, shape in shapes(CASES[LORA_BASE]).items():
        if name.endswith(("q_proj.weight", "v_proj.weight", "o_proj.weight", "up_proj.weight", "down_proj.weight")):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            found[f"{module}.lora_A.weight"] = uniform(f"lora/{name}/A", (rank, shape[1]), 0.3)
            found[f"{module}.lora_B.weight"] = uniform(f"lora/{name}/B", (shape[0], rank), 0.3)
    return found


def lora_config(rank: int = LORA_RANK) -> dict[str, Any]:
    """``adapter_config.json`` of `lora_tensors`."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
        "base_model_name_or_path": LORA_BASE,
    }


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], dtype: str = "F32") -> None:
    """Write a safetensors file; BF16 keeps the upper half of each float32."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in arrays.items():
        if dtype == "BF16":
            raw = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            raw = array.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def write_model(directory: Path, case: str, *, dtype: str = "F32", shards: int = 1) -> Path:
    """Write a model directory in Hugging Face layout."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CASES[case]))
    weights = tensors(case)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", weights, dtype)
        return directory
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = dict(list(weights.items())[shard::shards])
        write_safetensors(directory / name, own, dtype)
        weight_map |= dict.fromkeys(own, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def write_lora(directory: Path, rank: int = LORA_RANK) -> Path:
    """Write an adapter directory in PEFT's layout."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(lora_config(rank)))
    write_safetensors(directory / "adapter_model.safetensors", lora_tensors(rank))
    return directory
