"""Settings of the frontend."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import SecretStr

from dynamo.config.settings import Settings, setting

__all__ = ["FrontendSettings"]


class FrontendSettings(Settings):
    """The HTTP side of a deployment."""

    section: ClassVar[str] = "frontend"

    http_host: str = setting("0.0.0.0", env=("DYN_HTTP_HOST",))
    """Address that clients connect to."""
    http_port: int = setting(8000, env=("DYN_HTTP_PORT",), ge=0, le=65535)
    """Port that clients connect to; 0 takes a free one."""
    http_reuse_port: bool = setting(False, env=("DYN_HTTP_REUSE_PORT",))
    """Let several frontends of this machine listen on one port; connections are spread over them."""
    http_body_limit_mib: int = setting(8, env=("DYN_HTTP_BODY_LIMIT_MB",), ge=1)
    """Largest request body in MiB; beyond it the answer is 413."""
    request_timeout_seconds: float = setting(600.0, env=("DYN_REQUEST_TIMEOUT_SECONDS",), gt=0)
    """A request that takes longer is cancelled."""
    max_inflight_requests: int = setting(10_000, env=("DYN_MAX_INFLIGHT_REQUESTS",), ge=1)
    """Open requests of this process; beyond it the answer is 503 with Retry-After."""
    migration_limit: int = setting(3, env=("DYN_MIGRATION_LIMIT",), ge=0)
    """How often one stream may move to another worker after losing its own."""
    migration_wait_seconds: float = setting(5.0, env=("DYN_MIGRATION_WAIT_SECONDS",), ge=0)
    """How long a stream that lost its worker waits for another one when there is none."""
    strict: bool = setting(False, env=("DYN_STRICT",))
    """Refuse requests with parameters that nobody knows, by name; else they are ignored."""
    max_choices: int = setting(128, env=("DYN_MAX_CHOICES",), ge=1)
    """Largest `n` times prompts of one request."""
    max_stop_strings: int = setting(16, env=("DYN_MAX_STOP_STRINGS",), ge=0)
    """Most stop strings of one request."""
    artifact_cache_dir: str = setting("", env=("DYN_ARTIFACT_CACHE_DIR",))
    """Where tokenizers fetched from workers are kept; empty: below the state directory."""
    tokenizer_cache_mib: int = setting(64, env=("DYN_TOKENIZER_CACHE_MIB",), ge=0)
    """Memory per model for tokenized beginnings of chats, so that a next turn costs its new messages; 0 keeps none."""
    access_log: str = setting("", env=("DYN_ACCESS_LOG",))
    """File that gets one JSON line per finished request; ``-`` is standard output, empty none."""
    request_log: str = setting("", env=("DYN_REQUEST_LOG",))
    """File that gets one JSON line per engine request, which `dynamo replay` reads; ``-`` is standard output, empty
    none."""
    request_log_texts: bool = setting(False, env=("DYN_REQUEST_LOG_TEXTS",))
    """Write the texts of prompts and answers into the request log too."""
    drain_grace_seconds: float = setting(30.0, env=("DYN_FRONTEND_DRAIN_GRACE_SECONDS",), ge=0)
    """How long open responses may go on after SIGTERM."""
    store_dir: str = setting("", env=("DYN_STORE_DIR",))
    """Directory of kept responses, files and batches; empty: below the state directory. Frontends with the same one
    share them. ``dynamo serve`` gives its frontends one that outlives the run."""
    response_store_entries: int = setting(10_000, env=("DYN_RESPONSE_STORE_ENTRIES",), ge=0)
    """Responses of /v1/responses that are kept for clients to go on from, in a file of the state directory that all
    frontends of the machine share; beyond it the least recently used go. 0 keeps none."""
    response_store_mib: int = setting(256, env=("DYN_RESPONSE_STORE_MIB",), ge=1)
    """Size of the kept responses together."""
    file_store_mib: int = setting(2048, env=("DYN_FILE_STORE_MIB",), ge=0)
    """Size of the files of /v1/files together, in the state directory; 0 serves neither files nor batches."""
    file_limit_mib: int = setting(256, env=("DYN_FILE_LIMIT_MIB",), ge=1)
    """Largest file that can be uploaded; beyond it the answer is 413."""
    max_files: int = setting(10_000, env=("DYN_MAX_FILES",), ge=1)
    """Most files that are kept."""
    file_expiry_days: float = setting(30.0, env=("DYN_FILE_EXPIRY_DAYS",), gt=0)
    """How long files, and batches that have ended, are kept when their client says nothing."""
    batch_max_requests: int = setting(50_000, env=("DYN_BATCH_MAX_REQUESTS",), ge=1)
    """Most requests of one batch."""
    batch_concurrency: int = setting(32, env=("DYN_BATCH_CONCURRENCY",), ge=1)
    """How many requests of batches this process has in work at a time."""
    batch_priority: int = setting(1000, env=("DYN_BATCH_PRIORITY",), ge=0, le=2**30)
    """Added to the priority of requests of batches; lower is sooner."""
    batch_lease_seconds: float = setting(10.0, env=("DYN_BATCH_LEASE_SECONDS",), ge=1)
    """After this time the batch of a frontend that was killed goes on at another one."""
    batch_model_wait_seconds: float = setting(120.0, env=("DYN_BATCH_MODEL_WAIT_SECONDS",), ge=0)
    """How long after its start this process waits for models that it does not serve; later requests of batches for them
    fail. A batch whose models were only ever served by other runs on the store it leaves to those."""
    max_embedding_inputs: int = setting(2048, env=("DYN_MAX_EMBEDDING_INPUTS",), ge=1)
    """Most inputs of one embedding request."""
    embedding_concurrency: int = setting(32, env=("DYN_EMBEDDING_CONCURRENCY",), ge=1)
    """How many inputs of one embedding request are with workers at a time."""
    api_key: list[SecretStr] = setting([])
    """A key that clients must send; may be repeated. Other users of the machine can read it: better use the variable
    DYN_API_KEYS or --api-key-file."""
    api_keys: list[str] = setting([], env=("DYN_API_KEYS", "DYN_API_KEY"), secret=True)
    """Keys of which clients must send one, separated by commas."""
    api_key_file: str = setting("", env=("DYN_API_KEY_FILE",))
    """YAML or JSON file of API keys with their models and limits; read again when it changes."""
    rate_limit_store: Literal["sqlite", "memory"] = setting("sqlite", env=("DYN_RATE_LIMIT_STORE",))
    """Where limits of API keys are counted: in a file of the state directory that all frontends of the machine share,
    or in each process."""
    metrics_auth: bool = setting(False, env=("DYN_METRICS_AUTH",))
    """Ask for an API key on /metrics too."""
    tls_cert_path: str = setting("", env=("DYN_TLS_CERT_PATH",))
    """PEM certificate chain; with it the server speaks HTTPS. Read again when it changes."""
    tls_key_path: str = setting("", env=("DYN_TLS_KEY_PATH",))
    """Its private key."""
    tls_client_ca_cert_path: str = setting("", env=("DYN_TLS_CLIENT_CA_CERT_PATH",))
    """PEM certificates of the authorities that sign for clients; with it every client must show a certificate."""
    security_reload_seconds: float = setting(2.0, env=("DYN_SECURITY_RELOAD_SECONDS",), gt=0)
    """How often key file and certificate are looked at for changes."""
    cors_allow_origins: list[str] = setting([], env=("DYN_CORS_ALLOW_ORIGINS",))
    """Origins whose pages may use this server from a browser; * is all of them, empty none."""
