"""The engine's part of a worker's command line: our own flags are split off, vLLM's go to its own parser untouched.

The worker host has taken its flags before (``--model``, ``--served-model-name``, ``--disaggregation-mode``, ...).
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from dynamo.config import settings_from_flags, settings_options
from dynamo.config.foreign_flags import ForeignFlag, without_foreign_flags
from dynamo.config.settings import nearest
from dynamo.errors import ConfigError
from dynamo.protocols.llm import DisaggregationMode
from dynamo.vllm.settings import VllmSettings

__all__ = ["engine_arguments", "requested_mode", "split_flags"]

logger = logging.getLogger(__name__)

_HTTP = "the frontend serves HTTP"
_NO_SERVER = "a worker has no HTTP server"
_SECURITY = "see the frontend's flags"
_TEMPLATE = "the frontend applies the template that lies in the model's directory"

_FOREIGN: dict[str, ForeignFlag] = {
    "--host": ForeignFlag(1, _HTTP),
    "--port": ForeignFlag(1, _HTTP),
    "--uds": ForeignFlag(1, _HTTP),
    "--root-path": ForeignFlag(1, _HTTP),
    "--api-key": ForeignFlag(1, _SECURITY),
    "--ssl-keyfile": ForeignFlag(1, _SECURITY),
    "--ssl-certfile": ForeignFlag(1, _SECURITY),
    "--api-server-count": ForeignFlag(1, "frontends are processes of their own; see `dynamo serve --frontends`"),
    "--chat-template": ForeignFlag(1, _TEMPLATE),
    "--custom-jinja-template": ForeignFlag(1, _TEMPLATE),
    "--enable-auto-tool-choice": ForeignFlag(0, "the frontend parses tool calls; see --dyn-tool-call-parser"),
    "--tool-call-parser": ForeignFlag(1, "the frontend parses tool calls; use --dyn-tool-call-parser"),
    "--migration-limit": ForeignFlag(1, "the frontend decides about migration"),
    "--dyn-endpoint-types": ForeignFlag(1, "the model's card says what the engine can do"),
    "--use-vllm-tokenizer": ForeignFlag(0, "the frontend tokenizes"),
    "--enable-local-indexer": ForeignFlag(0, "every worker answers for what its cache holds"),
    "--durable-kv-events": ForeignFlag(0, "see --event-plane-durable"),
    "--store-kv": ForeignFlag(1, "see --discovery-backend"),
    "--dump-config-to": ForeignFlag(1, "the configuration is logged at start"),
    "--headless": ForeignFlag(0, _NO_SERVER),
    "--disable-uvicorn-access-log": ForeignFlag(0, _NO_SERVER),
    "--middleware": ForeignFlag(None, _NO_SERVER),
}


def split_flags(argv: Sequence[str]) -> tuple[VllmSettings, list[str]]:
    """Our settings, and the flags that are vLLM's. Flags without a meaning here are left out, with a warning by name.

    Raises:
        ConfigError: a value of one of our flags is wrong.
    """

    @click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
    @settings_options(VllmSettings)
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def flags(**_flags: Any) -> None:
        """Only parsed, never run."""

    try:
        parsed = flags.make_context("vllm", list(argv)).params
    except click.UsageError as error:
        raise ConfigError(f"vLLM backend: {error.format_message()}") from error
    rest = list(without_foreign_flags(parsed.pop("rest"), _FOREIGN))
    settings = settings_from_flags(VllmSettings, parsed)
    if settings.connector not in ("", "none", "null"):
        logger.warning("--connector %s is ignored: give vLLM's --kv-transfer-config", settings.connector)
    return settings, rest


def requested_mode(settings: VllmSettings, mode: DisaggregationMode) -> DisaggregationMode:
    """The part that this worker takes: the worker's `mode`, or what flags of older manifests say.

    Raises:
        ConfigError: they contradict each other.
    """
    wanted = {mode} - {DisaggregationMode.AGGREGATED}
    wanted |= {DisaggregationMode.PREFILL} if settings.is_prefill_worker else set()
    wanted |= {DisaggregationMode.DECODE} if settings.is_decode_worker else set()
    if len(wanted) > 1:
        raise ConfigError(
            "this worker is told to be a prefill worker and a decode worker",
            hint="give one of --disaggregation-mode, --is-prefill-worker and --is-decode-worker",
        )
    return wanted.pop() if wanted else mode


def engine_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """What `argv` chooses of vLLM's ``AsyncEngineArgs``, by field name; nothing that it leaves at its default.

    Imports vLLM.

    Raises:
        ConfigError: a flag is unknown (the nearest one is named), or its value is wrong.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    fields = [field.name for field in dataclasses.fields(AsyncEngineArgs)]

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM is not there where types are checked
        """vLLM's parser, which raises in place of ending the process."""

        def error(self, message: str) -> NoReturn:
            raise _refusal(message, fields)

    parser = AsyncEngineArgs.add_cli_args(Parser(prog="vllm", add_help=False, allow_abbrev=False))
    # Values that are there before parsing are kept, so what still has this one afterwards was not chosen.
    unset = object()
    try:
        chosen = parser.parse_args(list(argv), argparse.Namespace(**dict.fromkeys(fields, unset)))
    except (ValueError, OSError) as error:  # a --config file that is not there, JSON that is none
        raise ConfigError(f"vLLM's flags: {error}") from error
    return {name: value for name in fields if (value := getattr(chosen, name)) is not unset}


def _refusal(message: str, fields: Sequence[str]) -> ConfigError:
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown is None:
        return ConfigError(f"vLLM's flags: {message}")
    flag = unknown[1].partition("=")[0]
    if not flag.startswith("-"):
        return ConfigError(f"vLLM's flags: {flag!r} belongs to no flag")
    guess = nearest(flag, [f"--{name.replace('_', '-')}" for name in fields])
    hint = f"did you mean {guess}?" if guess else "see vLLM's page about engine arguments"
    return ConfigError(f"neither this worker nor vLLM has a flag {flag}", param=flag, hint=hint)
