"""A model's text side in one object: what a frontend builds per model, from a directory or from fetched artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from dynamo.errors import ConfigError
from dynamo.preprocessor.chat_template import ChatTemplate
from dynamo.preprocessor.model_files import json_object, read_model_files
from dynamo.preprocessor.tokenizer import Tokenizer

__all__ = ["TextModel"]

#: Names of the context length in config.json, most usual first.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
#: What of generation_config.json sets a default of `SamplingOptions`.
_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TextModel:
    """Tokenizer, chat template and the facts of a model that requests need."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate
    eos_token_ids: tuple[int, ...] = ()
    """Every id that ends a text, ascending."""
    context_length_tokens: int = 0
    """0: config.json does not say."""
    default_sampling: Mapping[str, float | int] = field(default_factory=dict)
    """Field of `SamplingOptions` to the model's own default; empty for models that are greedy by default."""

    @classmethod
    def from_directory(cls, path: Path | str, *, name: str = "") -> TextModel:
        """Load a model directory.

        Raises:
            ConfigError: a file is missing, unreadable or corrupt; the message names it.
        """
        return cls.from_artifacts(read_model_files(path), name=name or Path(path).name)

    @classmethod
    def from_artifacts(cls, files: Mapping[str, bytes], *, name: str = "") -> TextModel:
        """Build from file contents by name.

        Raises:
            ConfigError: ``tokenizer.json`` is missing, or a file is corrupt.
        """
        if "tokenizer.json" not in files:
            raise ConfigError(
                f"model {name!r} has no tokenizer.json",
                hint="convert the tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(directory)",
            )
        config = json_object(files, "config.json")
        generation = json_object(files, "generation_config.json")
        tokenizer = Tokenizer.from_files(
            files["tokenizer.json"],
            json_object(files, "tokenizer_config.json"),
            json_object(files, "special_tokens_map.json"),
        )
        return cls(
            name=name,
            tokenizer=tokenizer,
            template=ChatTemplate.from_files(files, name=name),
            eos_token_ids=_eos_token_ids(tokenizer, generation, config),
            context_length_tokens=_context_length_tokens(config),
            default_sampling=_default_sampling(generation),
        )


def _eos_token_ids(tokenizer: Tokenizer, *configs: Mapping[str, Any]) -> tuple[int, ...]:
    """Those of the first config that names any, and the tokenizer's own: chat models end turns with either."""
    ids: set[int] = set()
    for config in configs:
        value = _text_config(config, "eos_token_id").get("eos_token_id")
        ids = {i for i in (value if isinstance(value, list) else [value]) if _is_integer(i)}
        if ids:
            break
    own = tokenizer.raw.token_to_id(tokenizer.special_tokens.get("eos_token", ""))
    return tuple(sorted(ids if own is None else ids | {own}))


def _context_length_tokens(config: Mapping[str, Any]) -> int:
    for key in _CONTEXT_KEYS:
        value = _text_config(config, key).get(key)
        if _is_integer(value) and value > 0:
            return value
    return 0


def _default_sampling(generation: Mapping[str, Any]) -> dict[str, float | int]:
    if generation.get("do_sample") is not True:
        return {}
    defaults = {key: generation[key] for key in _SAMPLING_KEYS if generation.get(key) is not None}
    for key, value in defaults.items():
        if not (_is_integer(value) or (isinstance(value, float) and key != "top_k")):
            raise ConfigError(f"generation_config.json: {key} must be a number, got {value!r}", param=key)
    return defaults


def _text_config(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """`config`, or the part for text where a multimodal model keeps `key`."""
    inner = config.get("text_config")
    return inner if key not in config and isinstance(inner, Mapping) else config


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
