"""Flags of the echo engine, e.g. ``dynamo serve --backend echo --tokens-per-second 50``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import click

from dynamo.config import Settings, setting, settings_from_flags, settings_options
from dynamo.errors import ConfigError

__all__ = ["EchoSettings", "parse_flags"]


class EchoSettings(Settings):
    """How the echo engine behaves."""

    section: ClassVar[str] = "echo"

    script: str = setting("")
    """File of scripted replies, one JSON object per line; empty: the prompt's own tokens are the reply."""
    tokens_per_second: float = setting(0.0, ge=0)
    """Pace of every stream, in steps that all streams take together; 0 is as fast as it is read."""
    delay_ms: float = setting(0.0, ge=0)
    """Pause before the first token of a stream."""
    max_model_len: int = setting(4096, ge=2)
    """Context length in tokens, prompt and output together."""
    block_size: int = setting(16, ge=1)
    """Tokens per KV block."""
    num_blocks: int = setting(8192, ge=1)
    """Size of the pretended KV pool, in blocks."""
    fail_after: int = setting(0, ge=0)
    """Every stream fails with an engine error after this many tokens; 0 is never."""
    die_after: int = setting(0, ge=0)
    """The process exits, without a word to anybody, after this many tokens of all streams; 0 is never."""


def parse_flags(argv: Sequence[str]) -> EchoSettings:
    """Settings from the engine flags that the worker host passed through.

    Raises:
        ConfigError: a flag is unknown (the nearest one is named) or its value is wrong.
    """

    @click.command(add_help_option=False)
    @settings_options(EchoSettings)
    def echo(**_flags: Any) -> None:
        """Only parsed, never run."""

    try:
        context = echo.make_context("echo", list(argv))
    except click.UsageError as error:
        raise ConfigError(f"echo engine: {error.format_message()}") from error
    return settings_from_flags(EchoSettings, context.params, environ={})
