"""The model deployment card: what a frontend must know to serve a model without its files (DESIGN 4.3)."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from dynamo.errors import ConfigError
from dynamo.protocols.engine import EngineCapabilities
from dynamo.protocols.llm import DisaggregationMode

__all__ = [
    "ARTIFACTS_ENDPOINT",
    "CARD_LIMIT_BYTES",
    "CARD_SCHEMA_VERSION",
    "Artifact",
    "ArtifactRequest",
    "ModelDeploymentCard",
    "ModelType",
]

CARD_SCHEMA_VERSION = 1
#: Endpoint of every worker component that answers an ArtifactRequest with the pieces of the file.
ARTIFACTS_ENDPOINT = "artifacts"
#: etcd refuses values above 1.5 MB and watches deliver all of them at once: cards stay small, files travel by hash.
CARD_LIMIT_BYTES = 64 * 1024

ModelType = Literal["chat", "completions", "embedding"]


class Artifact(msgspec.Struct, frozen=True):
    """A file of the model that a frontend fetches from a worker by its hash."""

    sha256: str
    size_bytes: int


class ArtifactRequest(msgspec.Struct, frozen=True):
    """Asks a worker for one file of its card."""

    sha256: str


class ModelDeploymentCard(msgspec.Struct, omit_defaults=True):
    """One model as one worker serves it."""

    model: str
    """Name that clients use."""
    schema_version: int = CARD_SCHEMA_VERSION
    aliases: list[str] = []
    types: list[ModelType] = msgspec.field(default_factory=lambda: ["chat", "completions"])
    input: Literal["tokens", "text"] = "tokens"
    mode: DisaggregationMode = DisaggregationMode.AGGREGATED
    context_length_tokens: int = 0
    block_size_tokens: int = 16
    max_batched_tokens: int = 0
    total_kv_blocks: int = 0
    dp_size: int = 1
    dtype: str = ""
    backend: str = ""
    capabilities: EngineCapabilities = EngineCapabilities()
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    lora_base: str | None = None
    loras: list[str] = []
    artifacts: dict[str, Artifact] = {}
    """File name (``tokenizer.json``, ``chat_template.jinja``, ``config.json``, ...) to its hash."""

    def checksum(self) -> str:
        """Identity of the text side (tokenizer, template): workers of one model must agree on it."""
        names = ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json")
        text = "".join(f"{name}:{self.artifacts[name].sha256};" for name in names if name in self.artifacts)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(self) -> bytes:
        """JSON, at most `CARD_LIMIT_BYTES`.

        Raises:
            ConfigError: the card is larger.
        """
        data = msgspec.json.encode(self)
        if len(data) > CARD_LIMIT_BYTES:
            raise ConfigError(
                f"model deployment card of {self.model!r} is {len(data)} bytes; the limit is {CARD_LIMIT_BYTES}",
                hint="serve fewer aliases or LoRA adapters with one worker",
            )
        return data
