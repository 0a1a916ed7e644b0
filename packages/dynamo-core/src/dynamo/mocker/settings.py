"""Flags of the mocker, e.g. ``python3 -m dynamo.mocker --speedup-ratio 10``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import click
import msgspec

from dynamo.config import Settings, setting, setting_infos, settings_from_flags, settings_options
from dynamo.config.foreign_flags import ForeignFlag, without_foreign_flags
from dynamo.config.settings import nearest
from dynamo.errors import ConfigError

__all__ = ["MockerSettings", "is_foreign", "parse_flags"]


class MockerSettings(Settings):
    """How one simulated engine behaves."""

    section: ClassVar[str] = "mocker"

    num_gpu_blocks: int = setting(16_384, flags=("--num-gpu-blocks-override", "--num-gpu-blocks"), ge=1)
    """KV blocks of each data-parallel rank."""
    block_size: int = setting(64, ge=1, le=8192)
    """Tokens per KV block."""
    max_model_len: int = setting(0, ge=0)
    """Longest prompt plus output in tokens; 0 takes the model's, or what the KV blocks hold if that is less."""
    max_num_seqs: int = setting(256, ge=1)
    """Most requests that run in one step."""
    max_num_batched_tokens: int = setting(8192, ge=1)
    """Most tokens computed in one step; longer prompts are prefilled in chunks."""
    max_queued_requests: int = setting(4096, ge=1)
    """Requests that may wait; beyond it new ones are refused as overloaded."""
    enable_prefix_caching: bool = setting(True)
    """Reuse the KV blocks of earlier requests with the same prefix."""
    enable_chunked_prefill: bool = setting(True)
    """Compute long prompts over several steps."""
    data_parallel_size: int = setting(1, flags=("--data-parallel-size", "--dp-size"), ge=1, le=1024)
    """Data-parallel ranks, each with KV blocks and a schedule of its own."""
    speedup_ratio: float = setting(1.0, ge=0.0)
    """How many times faster than the perf model says; 0 takes no time at all."""
    decode_speedup_ratio: float = setting(1.0, gt=0.0)
    """The same for decoding alone, as speculative decoding would have it."""
    startup_time: float = setting(0.0, ge=0.0)
    """Seconds that loading the model takes."""
    perf_model: str = setting("", flags=("--planner-profile-data", "--perf-model"))
    """Measurements that step times are fitted to: a profiler's directory, .npz or .json; empty: built-in numbers."""
    kv_bytes_per_token: float = setting(131_072.0, ge=0.0)
    """Size of one token's KV, for transfers from a prefill worker."""
    kv_transfer_bandwidth: float = setting(64.0, ge=0.0)
    """Gigabytes per second of such transfers; 0: they take no time."""
    output: Literal["random", "echo"] = setting("random")
    """What is answered: pseudo-random ids that depend on the request alone, or the prompt's own ids."""
    default_output_tokens: int = setting(256, ge=1)
    """Length of an answer that the request does not bound by max_tokens or ignore_eos."""
    seed: int = setting(0, ge=0)
    """Another seed gives other answers."""
    extra_engine_args: str = setting("")
    """JSON file with any of these settings, by name; flags win."""


#: Flags that scripts and manifests carry for other simulators; there is nothing here that they could change.
_FOREIGN = frozenset(
    {
        "--preemption-mode",
        "--gpu-memory-utilization",
        "--mem-fraction-static",
        "--free-gpu-memory-fraction",
        "--num-workers",
        "--reasoning",
        "--response-plane",
        "--response-replay-trace-path",
        "--engine-type",
        "--trtllm-capacity-scheduler-policy",
        "--zmq-kv-events-ports",
        "--zmq-replay-ports",
        "--bootstrap-ports",
        "--kv-transfer-timing-mode",
        "--kv-cache-dtype",
        "--num-host-blocks",
        "--host-offload-d2h-bandwidth-gbps",
        "--host-offload-h2d-bandwidth-gbps",
        "--stagger-delay",
        "--use-remote-indexer",
        "--no-use-remote-indexer",
        "--enable-session-prefix-index",
        "--no-enable-session-prefix-index",
    }
)
_IGNORED = ForeignFlag(None, "nothing in this simulation depends on it")
_FOREIGN_FAMILIES = ("--ais-", "--aic-", "--sglang-", "--router-", "--no-router-")
#: Names of settings in other simulators' JSON files.
_OTHER_NAMES = {"num_gpu_blocks_override": "num_gpu_blocks", "dp_size": "data_parallel_size"}


def is_foreign(flag: str) -> bool:
    """Whether the mocker accepts `flag` for the sake of those who have it, and does nothing with it."""
    name = flag.partition("=")[0]
    return name in _FOREIGN or name.startswith(_FOREIGN_FAMILIES)


def parse_flags(argv: Sequence[str]) -> MockerSettings:
    """Settings from the engine flags that the worker host passed through; foreign ones are named in a warning.

    Raises:
        ConfigError: a flag is unknown (the nearest known one is named), or a value is wrong.
    """
    foreign = {name: _IGNORED for argument in argv if is_foreign(name := argument.partition("=")[0])}
    own = list(without_foreign_flags(argv, foreign))
    try:
        flags: dict[str, Any] = _command().main(own, prog_name="mocker", standalone_mode=False)
    except click.NoSuchOption as error:
        raise _unknown_flag(error.option_name) from error
    except click.ClickException as error:
        raise ConfigError(f"mocker flags: {error.format_message()}") from error
    path = flags.get("mocker__extra_engine_args")
    file = _read_arguments(Path(path)) if path else None
    return settings_from_flags(MockerSettings, flags, file=file, environ={})


def _command() -> click.Command:
    @click.command("mocker", add_help_option=False)
    @settings_options(MockerSettings)
    def mocker(**flags: Any) -> dict[str, Any]:
        return flags

    return mocker


def _read_arguments(path: Path) -> Mapping[str, Any]:
    try:
        loaded = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"engine arguments {str(path)!r} cannot be read: {error}",
            param="extra_engine_args",
            hint="give a JSON file with one object",
        ) from error
    return {_OTHER_NAMES.get(name, name): value for name, value in loaded.items()}


def _unknown_flag(flag: str) -> ConfigError:
    known = [name for info in setting_infos(MockerSettings) for name in info.flags]
    guess = nearest(flag, known)
    hint = f"did you mean {guess}?" if guess else f"flags of this engine: {', '.join(known)}"
    return ConfigError(f"the mocker has no flag {flag}", param=flag, hint=hint)
