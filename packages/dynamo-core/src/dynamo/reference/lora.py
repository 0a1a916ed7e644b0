"""LoRA adapters in PEFT's directory layout (``adapter_config.json``, ``adapter_model.safetensors``).

An adapter's matrices are fused as the base model's are (`dynamo.reference.weights`): per layer and fused projection one
pair ``x @ down @ up``, with the scale folded into ``up``. Source: arXiv 2106.09685.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.errors import ConfigError, InvalidRequest
from dynamo.reference.model_config import ModelConfig
from dynamo.reference.safetensors import TensorFile

__all__ = ["LoraAdapter", "LoraDelta", "LoraLayer", "load_lora_adapter"]

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(slots=True)
class LoraDelta:
    """``x @ down @ up``: down ``[in, rank]``, up ``[rank, out]``."""

    down: Array
    up: Array


#: Fused projection (``qkv``, ``output``, ``gate_up``, ``down``) to its delta.
LoraLayer = dict[str, LoraDelta]


@dataclasses.dataclass(slots=True)
class LoraAdapter:
    """One loaded adapter."""

    name: str
    layers: list[LoraLayer]
    fingerprint: str
    """Of the matrices and their scale. Part of the names of KV blocks: another adapter of the same name shares none."""


class _AdapterConfig(msgspec.Struct, frozen=True):
    """The part of ``adapter_config.json`` that changes what is computed."""

    r: int
    lora_alpha: float
    peft_type: str = "LORA"
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    trainable_token_indices: Any = None


_NAME = re.compile(
    r"^(?:base_model\.model\.)?model\.layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\.(?P<module>[a-z]+)_proj"
    r"\.lora_(?P<side>[AB])(?:\.default)?\.weight$"
)


def load_lora_adapter(name: str, directory: Path, config: ModelConfig, *, max_rank: int) -> LoraAdapter:
    """Read an adapter and check it against the base model's shapes.

    Raises:
        InvalidRequest: it is no adapter of this base model, its rank is too high or differs from what it states, or it
            uses a variant that is not supported.
    """
    try:
        settings = _read_settings(name, directory, max_rank)
        file = TensorFile(directory / "adapter_model.safetensors")
        tensors = {key: file.read(key) for key in file.names}
    except ConfigError as error:
        raise InvalidRequest(f"LoRA {name!r}: {error.message}", param="lora", hint=error.hint) from error
    scale = settings.lora_alpha / (math.sqrt(settings.r) if settings.use_rslora else settings.r)
    pairs = _pairs(name, tensors, config, settings.r)
    layers: list[LoraLayer] = []
    for layer in range(config.num_layers):
        fused = {}
        for target, modules in _fused_modules(config).items():
            delta = _fuse(pairs, layer, modules, scale)
            if delta is not None:
                fused[target] = delta
        layers.append(fused)
    return LoraAdapter(name, layers, _fingerprint(tensors, scale))


def _fingerprint(tensors: dict[str, Array], scale: float) -> str:
    digest = hashlib.sha256(str(scale).encode())
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].tobytes())
    return digest.hexdigest()


def _read_settings(name: str, directory: Path, max_rank: int) -> _AdapterConfig:
    path = directory / "adapter_config.json"
    try:
        settings = msgspec.json.decode(path.read_bytes(), type=_AdapterConfig, strict=False)
    except OSError as error:
        raise InvalidRequest(f"LoRA {name!r}: cannot read {path}: {error.strerror}", param="lora") from error
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"LoRA {name!r}: {path} is not a valid adapter configuration: {error}") from error
    unsupported = {
        f"peft_type {settings.peft_type}": settings.peft_type != "LORA",
        "use_dora": settings.use_dora,
        "fan_in_fan_out": settings.fan_in_fan_out,
        f"bias {settings.bias}": settings.bias != "none",
        "modules_to_save": bool(settings.modules_to_save),
        "rank_pattern": bool(settings.rank_pattern),
        "alpha_pattern": bool(settings.alpha_pattern),
        "trainable_token_indices": bool(settings.trainable_token_indices),
    }
    found = [what for what, present in unsupported.items() if present]
    if found:
        raise InvalidRequest(f"LoRA {name!r} uses {', '.join(found)}, which the reference engine does not support")
    if not 1 <= settings.r <= max_rank:
        raise InvalidRequest(
            f"LoRA {name!r} has rank {settings.r}; this engine takes 1 to {max_rank}", hint="see --max-lora-rank"
        )
    return settings


@dataclasses.dataclass(slots=True)
class _Module:
    name: str
    inputs: int
    outputs: int


def _fused_modules(config: ModelConfig) -> dict[str, list[_Module]]:
    hidden, queries = config.hidden_size, config.num_heads * config.head_dim
    keys, intermediate = config.num_kv_heads * config.head_dim, config.intermediate_size
    return {
        "qkv": [_Module("q", hidden, queries), _Module("k", hidden, keys), _Module("v", hidden, keys)],
        "output": [_Module("o", queries, hidden)],
        "gate_up": [_Module("gate", hidden, intermediate), _Module("up", hidden, intermediate)],
        "down": [_Module("down", intermediate, hidden)],
    }


def _pairs(name: str, tensors: dict[str, Array], config: ModelConfig, rank: int) -> dict[tuple[int, str], LoraDelta]:
    """``(layer, module)`` to its two matrices, transposed to ``[in, out]`` order."""
    modules = {module.name: module for fused in _fused_modules(config).values() for module in fused}
    sides: dict[tuple[int, str], dict[str, Array]] = {}
    for key, tensor in tensors.items():
        match = _NAME.match(key)
        module = modules.get(match["module"]) if match else None
        if match is None or module is None or int(match["layer"]) >= config.num_layers:
            raise InvalidRequest(
                f"LoRA {name!r} was not made for this base model: it has no place for {key!r}", param="lora"
            )
        expected = (rank, module.inputs) if match["side"] == "A" else (module.outputs, rank)
        if tensor.shape != expected:
            raise InvalidRequest(
                f"LoRA {name!r} does not fit: {key!r} has shape {list(tensor.shape)}, "
                f"rank {rank} and this base model need {list(expected)}",
                param="lora",
            )
        sides.setdefault((int(match["layer"]), module.name), {})[match["side"]] = tensor
    for (layer, module_name), found in sides.items():
        if len(found) != 2:
            raise InvalidRequest(f"LoRA {name!r} has only half of layer {layer} {module_name}_proj", param="lora")
    return {place: LoraDelta(found["A"].T, found["B"].T) for place, found in sides.items()}


def _fuse(
    pairs: dict[tuple[int, str], LoraDelta], layer: int, modules: list[_Module], scale: float
) -> LoraDelta | None:
    """Down matrices side by side, up matrices on a block diagonal over the fused output columns."""
    present = [module for module in modules if (layer, module.name) in pairs]
    if not present:
        return None
    own = [pairs[layer, module.name] for module in present]
    up = np.zeros((sum(pair.up.shape[0] for pair in own), sum(module.outputs for module in modules)), np.float32)
    row = column = 0
    for module in modules:
        pair = pairs.get((layer, module.name))
        if pair is not None:
            rank = pair.up.shape[0]
            up[row : row + rank, column : column + module.outputs] = pair.up * np.float32(scale)
            row += rank
        column += module.outputs
    return LoraDelta(np.ascontiguousarray(np.concatenate([pair.down for pair in own], axis=1)), up)
