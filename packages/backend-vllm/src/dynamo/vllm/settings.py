"""The adapter's own flags; all others go to vLLM untouched."""

from __future__ import annotations

from typing import ClassVar

from dynamo.config import Settings, setting

__all__ = ["VllmSettings"]


class VllmSettings(Settings):
    """How one vLLM engine is started, beside vLLM's own flags."""

    section: ClassVar[str] = "vllm"

    engine_start_timeout_seconds: float = setting(900.0, env=("DYN_VLLM_ENGINE_START_TIMEOUT_SECONDS",), gt=0)
    """Time after which an engine that has not started is killed, and the end of its log shown."""
    connector: str = setting("")
    """KV connector in the words of older manifests: none or null; for others give --kv-transfer-config."""
    is_prefill_worker: bool = setting(False)
    """In older manifests: --disaggregation-mode prefill."""
    is_decode_worker: bool = setting(False)
    """In older manifests: --disaggregation-mode decode."""
