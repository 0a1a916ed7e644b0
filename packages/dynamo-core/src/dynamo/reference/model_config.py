"""What ``config.json`` of a Hugging Face model directory says, for the architectures that this engine computes.

Read once at the start, by `dynamo.reference.engine`; everything after works on `ModelConfig` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from dynamo.errors import ConfigError

__all__ = ["SUPPORTED_ARCHITECTURES", "ModelConfig", "RopeScaling", "load_model_config"]

#: Architecture to what sets its layers apart.
SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn"]


class RopeScaling(msgspec.Struct, frozen=True):
    """Parameters of rotary position embeddings; names are those of ``rope_parameters``."""

    rope_type: RopeType = "default"
    rope_theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


class ModelConfig(msgspec.Struct, frozen=True):
    """Shapes and constants of one model."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeScaling
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    """Sliding window in tokens per layer; None attends to everything."""
    eos_token_ids: tuple[int, ...] = ()

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, float32."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * 4


def load_model_config(directory: Path) -> ModelConfig:
    """Read ``config.json`` (and the end-of-sequence ids of ``generation_config.json``).

    Raises:
        ConfigError: a file is missing or malformed, or the model is not one this engine computes.
    """
    raw = _read_json(directory / "config.json")
    architecture = _architecture(raw, directory)
    if raw.get("quantization_config"):
        raise ConfigError(
            f"{directory} is a quantized model", hint="the reference engine serves F32, F16 and BF16 weights"
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{directory}: hidden_act {raw['hidden_act']!r} is not supported", hint="supported: silu")
    try:
        return _build(raw, architecture, _eos_token_ids(raw, directory))
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{directory / 'config.json'} is not valid: {what}") from error


def _architecture(raw: Mapping[str, Any], directory: Path) -> str:
    named = raw.get("architectures")
    found = (
        str(named[0]) if isinstance(named, list) and named else f"unknown ({raw.get('model_type', 'no model_type')})"
    )
    if found not in SUPPORTED_ARCHITECTURES:
        raise ConfigError(
            f"{directory} is a model of architecture {found}, which the reference engine does not compute",
            hint=f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}",
        )
    return found


def _build(raw: Mapping[str, Any], architecture: str, eos_token_ids: tuple[int, ...]) -> ModelConfig:
    heads = int(raw["num_attention_heads"])
    hidden = int(raw["hidden_size"])
    layers = int(raw["num_hidden_layers"])
    attention_bias = bool(raw.get("attention_bias", False))
    config = ModelConfig(
        architecture=architecture,
        vocab_size=int(raw["vocab_size"]),
        hidden_size=hidden,
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or hidden // heads),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=int(raw["max_position_embeddings"]),
        rope=_rope(raw),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=architecture == "Qwen2ForCausalLM" or attention_bias,
        output_bias=architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and attention_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and bool(raw.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        windows=_windows(raw, architecture, layers),
        eos_token_ids=eos_token_ids,
    )
    _check(config)
    return config


def _check(config: ModelConfig) -> None:
    sizes = {
        name: getattr(config, name) for name in msgspec.structs.asdict(config) if name.endswith(("_size", "_heads"))
    }
    sizes |= {"num_hidden_layers": config.num_layers, "max_position_embeddings": config.max_position_embeddings}
    wrong = [name for name, value in sizes.items() if value < 1]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} must be positive")
    if config.num_heads % config.num_kv_heads:
        raise ValueError(f"{config.num_heads} heads cannot share {config.num_kv_heads} KV heads")
    rope = config.rope
    if rope.factor <= 0 or rope.rope_theta <= 1 or rope.high_freq_factor <= rope.low_freq_factor:
        raise ValueError("rope parameters need factor > 0, rope_theta > 1 and high_freq_factor > low_freq_factor")
    if config.head_dim % 2:
        raise ValueError(f"head_dim {config.head_dim} must be even for rotary embeddings")


def _rope(raw: Mapping[str, Any]) -> RopeScaling:
    """Both spellings: ``rope_parameters`` of today, ``rope_theta`` plus ``rope_scaling`` of older files."""
    values: dict[str, Any] = {"rope_theta": float(raw.get("rope_theta") or 10_000.0)}
    values |= raw.get("rope_scaling") or {}
    values |= raw.get("rope_parameters") or {}
    if values.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial_rotary_factor is not supported")
    values["rope_type"] = values.get("rope_type") or values.get("type") or "default"
    known = {name: values[name] for name in RopeScaling.__struct_fields__ if values.get(name) is not None}
    return msgspec.convert(known, RopeScaling, strict=False)


def _windows(raw: Mapping[str, Any], architecture: str, layers: int) -> tuple[int | None, ...]:
    window = raw.get("sliding_window")
    if architecture == "LlamaForCausalLM" or window is None:
        return (None,) * layers
    if architecture == "MistralForCausalLM":
        return (int(window),) * layers
    if not raw.get("use_sliding_window", False):
        return (None,) * layers
    kinds = raw.get("layer_types")
    if kinds is None:
        first = int(raw.get("max_window_layers", layers))
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    if len(kinds) != layers:
        raise ValueError(f"layer_types names {len(kinds)} of {layers} layers")
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _eos_token_ids(raw: Mapping[str, Any], directory: Path) -> tuple[int, ...]:
    generation = directory / "generation_config.json"
    value = _read_json(generation).get("eos_token_id") if generation.is_file() else None
    if value is None:
        value = raw.get("eos_token_id")
    if value is None:
        return ()
    return tuple(int(token) for token in (value if isinstance(value, list) else [value]))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="a model directory in Hugging Face layout is expected"
        ) from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return data
