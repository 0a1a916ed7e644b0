"""Settings of the select service."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import SecretStr

from dynamo.config.settings import Settings, setting

__all__ = ["SelectSettings"]


class SelectSettings(Settings):
    """Worker selection over HTTP, before servers that dynamo does not run."""

    section: ClassVar[str] = "select"

    http_host: str = setting("0.0.0.0", env=("DYN_SELECT_HTTP_HOST",))
    """Address that clients connect to."""
    http_port: int = setting(8090, env=("DYN_SELECT_HTTP_PORT",), ge=0, le=65535)
    """Port that clients connect to; 0 takes a free one."""
    workers_file: str = setting("", env=("DYN_SELECT_WORKERS_FILE",))
    """YAML or JSON file of workers that are there from the start: a list of what POST /workers takes."""
    tokenizer: list[str] = setting([], env=("DYN_SELECT_TOKENIZERS",))
    """MODEL=DIRECTORY, or only a directory for a model of its name: with it, prompts may be text or chat messages."""
    max_workers: int = setting(1024, env=("DYN_SELECT_MAX_WORKERS",), ge=1)
    """Most workers; beyond it registrations are answered with 503."""
    max_reservations: int = setting(100_000, env=("DYN_SELECT_MAX_RESERVATIONS",), ge=1)
    """Most open reservations; beyond it the answer is 503."""
    reservation_seconds: float = setting(300.0, env=("DYN_SELECT_RESERVATION_SECONDS",), gt=0)
    """A reservation that nobody ends counts as load for so long; requests may ask for less."""
    http_body_limit_mib: int = setting(8, env=("DYN_SELECT_BODY_LIMIT_MB",), ge=1)
    """Largest request body in MiB; beyond it the answer is 413."""
    api_key: list[SecretStr] = setting([])
    """A key that clients must send; may be repeated. Other users of the machine can read it: better use DYN_API_KEYS or
    --api-key-file."""
    api_keys: list[str] = setting([], env=("DYN_API_KEYS", "DYN_API_KEY"), secret=True)
    """Keys of which clients must send one, separated by commas."""
    api_key_file: str = setting("", env=("DYN_API_KEY_FILE",))
    """YAML or JSON file of API keys with their models and limits."""
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", env=("DYN_LOG", "DYN_LOG_LEVEL"))
    """Least severity that is logged."""
    log_format: Literal["text", "json"] = setting("text", env=("DYN_LOG_FORMAT",))
    """One line per event, as text or JSON."""
