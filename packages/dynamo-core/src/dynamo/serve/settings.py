"""Settings of ``dynamo serve``."""

from __future__ import annotations

from typing import ClassVar, Literal

from dynamo.config.settings import Settings, setting

__all__ = ["ServeSettings"]


class ServeSettings(Settings):
    """A model, or a graph file, on this machine."""

    section: ClassVar[str] = "serve"

    backend: str = setting("reference")
    """Engine that the workers run; `dynamo plugins` lists what is installed."""
    model: str = setting("")
    """Directory of a model, or its id on Hugging Face; empty: the engine's own default."""
    served_model_name: str = setting("")
    """Name that clients use; empty: the engine's choice."""
    replicas: int = setting(1, ge=1, le=64)
    """Number of workers."""
    frontends: int = setting(1, ge=1, le=64)
    """Number of frontends, which share the port."""
    gpus: int = setting(0, ge=0)
    """GPUs that each worker gets for itself; 0: all workers see every GPU."""
    router_mode: str = setting("round-robin", env=("DYN_ROUTER_MODE",))
    """How the frontend chooses the worker of a request."""
    host: str = setting("127.0.0.1", env=("DYN_HTTP_HOST",))
    """Address that clients connect to; 0.0.0.0 lets other machines in."""
    port: int | None = setting(None, env=("DYN_HTTP_PORT",), ge=0, le=65535)
    """Port that clients connect to; 0 takes a free one; by default 8000, or what the graph file says."""
    file: str = setting("", flags=("--file", "-f"))
    """Serve this graph file, a DynamoGraphDeployment, in place of one backend."""
    state_dir: str = setting("", env=("DYN_STATE_DIR",))
    """Directory for sockets, discovery and the control of what runs; empty: one per user."""
    store_dir: str = setting("", env=("DYN_STORE_DIR",))
    """Directory of files, batches and kept responses, which outlives the run; empty: one per user and model, below
    $XDG_STATE_HOME/dynamo or ~/.local/state/dynamo; none: they go with the run."""
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", env=("DYN_LOG", "DYN_LOG_LEVEL"))
    """Least severity that the processes log."""
    ready_timeout_seconds: float = setting(1800.0, flags=("--ready-timeout",), gt=0)
    """Stop with an error when not everything is ready after this time."""
