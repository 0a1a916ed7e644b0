"""The engine contract (DESIGN 4.1): what a backend implements and the worker host drives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from dynamo.protocols.context import RequestContext
from dynamo.protocols.kv_events import EngineKvEvents
from dynamo.protocols.llm import DisaggregationMode, LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.load import EngineLoad

__all__ = [
    "EngineCapabilities",
    "EngineConfig",
    "EngineFactory",
    "EngineMonitor",
    "EngineOptions",
    "KvEventSource",
    "LLMEngine",
    "LoadSource",
    "LoraHost",
    "MetricFamily",
    "MetricSample",
    "MetricsSource",
]


class EngineOptions(msgspec.Struct, frozen=True):
    """What the worker host hands to an engine's factory."""

    model: str | None = None
    """Directory or model id, as the user gave it; None: the engine's default."""
    served_model_name: str | None = None
    """The name that clients use; None: the engine chooses."""
    mode: DisaggregationMode = DisaggregationMode.AGGREGATED
    argv: tuple[str, ...] = ()
    """Every flag that the worker host does not know: the engine's own, untouched."""


class EngineCapabilities(msgspec.Struct, omit_defaults=True, frozen=True):
    """What this engine can do. A frontend refuses by name what no worker of a model can."""

    kv_events: bool = False
    load: bool = False
    modes: list[DisaggregationMode] = msgspec.field(default_factory=lambda: [DisaggregationMode.AGGREGATED])
    lora: bool = False
    embeddings: bool = False
    guided: list[str] = []
    """Kinds of :class:`~dynamo.protocols.llm.GuidedDecoding`."""
    logprobs: bool = False
    batch_invariant: bool = False
    """Equal tokens whatever shares the batch."""
    resume: bool = False
    """Honours `prior_output_tokens`; without it streams of this engine are not migrated."""


class EngineConfig(msgspec.Struct, omit_defaults=True):
    """Facts of a started engine; the worker host makes the model deployment card of them."""

    model: str
    """Name that clients use."""
    model_directory: Path | None = None
    """Where tokenizer.json, the chat template and config.json lie; None: the engine has no text side."""
    context_length_tokens: int = 0
    block_size_tokens: int = 16
    total_kv_blocks: int = 0
    max_batched_tokens: int = 0
    max_running_requests: int = 0
    dp_size: int = 1
    dtype: str = ""
    capabilities: EngineCapabilities = EngineCapabilities()
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None


class LLMEngine(Protocol):
    """A backend. All methods are called on one event loop, which none of them may block."""

    async def start(self) -> EngineConfig:
        """Load the model. Called once, before anything else.

        Raises:
            ConfigError: a flag or the model directory is wrong.
            EngineError: the engine cannot start.
        """
        ...

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> AsyncIterator[LLMEngineOutput]:
        """Stream the outputs of one request; the last one carries `finish_reason` and `usage`.

        Closing the iterator early counts as :meth:`abort`. After `context.cancel()` the worker host calls
        :meth:`abort`; the iterator then ends with ``finish_reason="cancelled"``.

        Raises:
            InvalidRequest: at the first step, the request cannot be served (too long, unknown LoRA, ...).
            EngineShutdown: the engine stopped; another worker may go on.
            EngineError: the engine failed on this request.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Stop a request and free its KV blocks. Idempotent; unknown ids are ignored."""
        ...

    async def drain(self, deadline_seconds: float) -> None:
        """Take nothing new; return when what runs has ended, or after `deadline_seconds`."""
        ...

    async def cleanup(self) -> None:
        """Free everything. Streams that are still open end with :class:`~dynamo.errors.EngineShutdown`. Idempotent."""
        ...


class EngineFactory(Protocol):
    """What a plugin registers: a class or function that makes an engine of options, without loading anything."""

    def __call__(self, options: EngineOptions, /) -> LLMEngine:
        """Parse the engine's flags.

        Raises:
            ConfigError: a flag is unknown or wrong.
        """
        ...


@runtime_checkable
class EngineMonitor(Protocol):
    """An engine that notices its own death, also while nobody uses it; its worker then ends with the reason."""

    async def failure(self) -> str:
        """Wait until the engine can serve no more, though nobody stopped it; why. Called once, after :meth:`start`."""
        ...


@runtime_checkable
class KvEventSource(Protocol):
    """An engine with the `kv_events` capability."""

    def kv_events(self) -> AsyncIterator[EngineKvEvents]:
        """Changes of the prefix cache in order, from the start of the engine; at most one consumer."""
        ...


@runtime_checkable
class LoadSource(Protocol):
    """An engine with the `load` capability."""

    def load(self) -> Sequence[EngineLoad]:
        """Load now, one entry per data-parallel rank. Cheap; called a few times a second."""
        ...


class MetricSample(msgspec.Struct, frozen=True):
    """One number of a metric, as Prometheus counts them: a histogram has many."""

    name: str
    labels: dict[str, str]
    value: float


class MetricFamily(msgspec.Struct, frozen=True):
    """A metric of an engine."""

    name: str
    type: str
    """``counter``, ``gauge``, ``histogram``, ``summary``, ``info`` or ``unknown``."""
    documentation: str
    samples: list[MetricSample]


@runtime_checkable
class MetricsSource(Protocol):
    """An engine with metrics of its own, beyond its load; the worker shows them with its labels."""

    def metrics(self) -> Iterable[MetricFamily]:
        """All of them now, under the engine's own names. Called when somebody scrapes the worker."""
        ...


@runtime_checkable
class LoraHost(Protocol):
    """An engine with the `lora` capability."""

    async def load_lora(self, name: str, path: str) -> None:
        """Make adapter `name` usable by requests.

        Raises:
            InvalidRequest: the adapter does not fit the base model, or the name is taken.
        """
        ...

    async def unload_lora(self, name: str) -> None:
        """Forget `name` once nothing uses it. Raises InvalidRequest when it is not loaded."""
        ...

    def loras(self) -> Sequence[str]:
        """Names that requests may use now."""
        ...
