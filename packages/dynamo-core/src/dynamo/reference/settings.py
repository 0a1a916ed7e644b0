"""Flags of the reference engine, read from the arguments that the worker host passes through untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import click

from dynamo.config import Settings, setting, setting_infos, settings_from_flags, settings_options
from dynamo.config.settings import nearest
from dynamo.errors import ConfigError

__all__ = ["ReferenceSettings", "parse_flags"]


class ReferenceSettings(Settings):
    """How one reference engine runs."""

    section: ClassVar[str] = "reference"

    block_size: int = setting(16, ge=1, le=1024)
    """Tokens per KV block."""
    num_blocks: int = setting(0, ge=0)
    """KV blocks in the pool; 0 derives them from the KV cache memory."""
    kv_cache_memory_mib: int = setting(256, ge=1)
    """Memory of the KV cache in MiB, when the number of blocks is not given; pages are touched as they are used."""
    max_model_len: int = setting(0, ge=0)
    """Longest prompt plus output in tokens; 0 takes the model's, or what the KV pool holds if that is less."""
    max_num_seqs: int = setting(64, ge=1, le=4096)
    """Most requests that run in one step."""
    max_num_batched_tokens: int = setting(512, ge=1)
    """Most tokens computed in one step; longer prompts are prefilled in chunks."""
    max_queued_requests: int = setting(2048, ge=1)
    """Requests that may wait; beyond it new ones are refused as overloaded."""
    enable_prefix_caching: bool = setting(True)
    """Reuse the KV blocks of earlier requests with the same prefix."""
    dtype: Literal["auto", "float32"] = setting("float32")
    """Type that the engine computes in."""
    threads: int = setting(1, ge=1, le=256)
    """BLAS threads. More than one pays only for large models on idle cores: spinning threads starve shared ones."""
    lora: tuple[str, ...] = setting(())
    """Adapter to load at the start, as NAME=PATH; may be repeated."""
    max_lora_rank: int = setting(64, ge=1, le=1024)
    """Adapters of a higher rank are refused."""
    seed: int | None = setting(None, ge=0)
    """Seed of requests that bring none; not given: drawn from the operating system."""
    step_delay_ms: float = setting(0.0, ge=0.0, le=60_000.0)
    """Pause after each engine step, so that tests and demos can watch what is usually too quick to see."""


def parse_flags(argv: Sequence[str]) -> ReferenceSettings:
    """Settings from the engine's own flags.

    Raises:
        ConfigError: a flag is unknown (the nearest known one is named) or a value is wrong.
    """
    command = settings_options(ReferenceSettings)(click.Command("reference", callback=lambda **flags: flags))
    try:
        flags: dict[str, Any] = command.main(list(argv), prog_name="reference", standalone_mode=False)
    except click.NoSuchOption as error:
        raise _unknown_flag(error.option_name) from error
    except click.ClickException as error:
        raise ConfigError(f"reference engine flags: {error.format_message()}") from error
    return settings_from_flags(ReferenceSettings, flags, environ={})


def _unknown_flag(flag: str) -> ConfigError:
    known = [name for info in setting_infos(ReferenceSettings) for name in info.flags]
    known.append("--no-enable-prefix-caching")
    guess = nearest(flag, known)
    hint = f"did you mean {guess}?" if guess else f"flags of this engine: {', '.join(known)}"
    return ConfigError(f"the reference engine has no flag {flag}", param=flag, hint=hint)
