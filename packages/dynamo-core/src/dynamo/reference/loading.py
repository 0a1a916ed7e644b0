"""From a model directory and flags to an `EngineCore` that is ready to run. Slow; called off the event loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.reference.core import EngineCore
from dynamo.reference.kv_cache import KvCache
from dynamo.reference.model import Model
from dynamo.reference.model_config import ModelConfig, load_model_config
from dynamo.reference.settings import ReferenceSettings
from dynamo.reference.weights import load_weights

__all__ = ["LoadedModel", "load_model"]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with everything that running it needs."""

    config: ModelConfig
    core: EngineCore
    max_model_len: int
    fingerprint: str


def load_model(directory: Path, settings: ReferenceSettings) -> LoadedModel:
    """Load `directory`.

    Raises:
        ConfigError: the directory is wrong, or the settings do not fit the model.
    """
    config = load_model_config(directory)
    num_blocks = settings.num_blocks or _blocks_in_memory(config, settings)
    max_model_len = _max_model_len(config, settings, num_blocks * settings.block_size)
    if settings.max_num_batched_tokens < settings.max_num_seqs:
        raise ConfigError(
            f"--max-num-batched-tokens {settings.max_num_batched_tokens} is less than "
            f"--max-num-seqs {settings.max_num_seqs}",
            hint="every running request decodes one token per step",
        )
    weights = load_weights(directory, config)
    core = EngineCore(
        Model(config, weights, max_model_len),
        KvCache(config, num_blocks, settings.block_size),
        max_model_len=max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        eos_token_ids=config.eos_token_ids,
        enable_prefix_caching=settings.enable_prefix_caching,
        seed=settings.seed,
    )
    return LoadedModel(config, core, max_model_len, weights.fingerprint)


def _blocks_in_memory(config: ModelConfig, settings: ReferenceSettings) -> int:
    blocks = settings.kv_cache_memory_mib * 2**20 // (config.kv_bytes_per_token * settings.block_size)
    if not blocks:
        raise ConfigError(
            f"--kv-cache-memory-mib {settings.kv_cache_memory_mib} does not hold one block: "
            f"{settings.block_size} tokens of {config.kv_bytes_per_token} bytes"
        )
    return blocks


def _max_model_len(config: ModelConfig, settings: ReferenceSettings, pool_tokens: int) -> int:
    """One request of this length always fits: the model's positions and the whole pool bound it."""
    asked = settings.max_model_len
    if asked > config.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {asked} is more than the model's {config.max_position_embeddings} positions"
        )
    if asked > pool_tokens:
        raise ConfigError(
            f"the KV pool holds {pool_tokens} tokens, less than one request of --max-model-len {asked}",
            hint="raise --num-blocks or --kv-cache-memory-mib, or lower --max-model-len",
        )
    return asked or min(config.max_position_embeddings, pool_tokens)
