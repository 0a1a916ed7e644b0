"""Settings of a worker process; every flag that is not here, or of the runtime, is the engine's own."""

from __future__ import annotations

from typing import ClassVar, Literal

from dynamo.config.settings import Settings, setting
from dynamo.protocols.llm import DisaggregationMode

__all__ = ["WorkerSettings"]


class WorkerSettings(Settings):
    """Which engine to host, under which names."""

    section: ClassVar[str] = "worker"

    model: str = setting("", env=("DYN_MODEL",), flags=("--model", "--model-path"))
    """Directory or id of the model; empty: the engine's own default."""
    served_model_name: str = setting("", env=("DYN_SERVED_MODEL_NAME",), flags=("--served-model-name", "--model-name"))
    """Name that clients use; empty: the engine's choice."""
    model_aliases: list[str] = setting([], env=("DYN_MODEL_ALIASES",), flags=("--model-alias",))
    """Further names for the same model; may be given several times."""
    revision: str = setting("", env=("DYN_MODEL_REVISION",))
    """Branch, tag or commit of a model from a hub; empty: its default branch."""
    component: str = setting("backend", env=("DYN_COMPONENT",))
    """Component name of this worker in discovery."""
    endpoint: str = setting("generate", env=("DYN_ENDPOINT_NAME",), flags=("--endpoint-name",))
    """Endpoint name of this worker in discovery."""
    disaggregation_mode: Literal["aggregated", "agg", "prefill", "decode"] = setting(
        "aggregated", env=("DYN_DISAGGREGATION_MODE",)
    )
    """The part of a request's life that this worker takes."""
    tool_call_parser: str = setting("", env=("DYN_TOOL_CALL_PARSER",), flags=("--dyn-tool-call-parser",))
    """How frontends read tool calls out of this model's text; empty: as the engine says."""
    reasoning_parser: str = setting("", env=("DYN_REASONING_PARSER",), flags=("--dyn-reasoning-parser",))
    """How frontends read reasoning out of this model's text; empty: as the engine says."""
    lora_modules: list[str] = setting([], env=("DYN_LORA_MODULES",))
    """LoRA adapter to load at the start, as NAME=DIRECTORY; may be given several times."""
    lora_enabled: bool = setting(False, env=("DYN_LORA_ENABLED",))
    """Let adapters be loaded and unloaded while the worker runs: /v1/loras on the system port."""
    lora_path: str = setting("~/.cache/dynamo_loras", env=("DYN_LORA_PATH",))
    """Directory below which adapters must lie to be loaded at run time."""
    lora_limit: int = setting(64, env=("DYN_LORA_LIMIT",), ge=1, le=256)
    """Adapters that may be loaded at once."""
    lora_size_limit_mib: int = setting(4096, env=("DYN_LORA_SIZE_LIMIT_MIB",), ge=1)
    """Largest adapter that is loaded."""
    engine_request_limit: int = setting(4096, env=("DYN_ENGINE_REQUEST_LIMIT",), ge=1)
    """Requests that may be in the engine at once; beyond it they are refused and tried elsewhere."""
    canary_interval_seconds: float = setting(0.0, env=("DYN_CANARY_INTERVAL_SECONDS",), ge=0)
    """Idle time after which a one-token request proves that the engine still answers; 0: never."""
    canary_timeout_seconds: float = setting(30.0, env=("DYN_CANARY_TIMEOUT_SECONDS",), gt=0)
    """How long that request may take before this worker counts as not healthy."""
    drain_grace_seconds: float = setting(30.0, env=("DYN_DRAIN_GRACE_SECONDS",), ge=0)
    """How long running requests may go on after SIGTERM."""

    @property
    def mode(self) -> DisaggregationMode:
        """The mode in force; users' manifests say ``agg`` for aggregated."""
        return DisaggregationMode("aggregated" if self.disaggregation_mode == "agg" else self.disaggregation_mode)
