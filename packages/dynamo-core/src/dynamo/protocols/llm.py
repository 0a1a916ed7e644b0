"""Requests and outputs as they cross the request plane, between frontend, router and worker.

Everything is a map on the wire (fields may be added, unknown ones are ignored), except prompt token ids, which travel
as packed little-endian uint32: 1,000 tokens are one 4 kB copy in place of 1,000 msgpack integers.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = [
    "DisaggregationMode",
    "EmbeddingOutput",
    "FinishReason",
    "GuidedDecoding",
    "KvTransferParams",
    "LLMEngineOutput",
    "PreprocessedRequest",
    "SamplingOptions",
    "StopConditions",
    "TokenLogprob",
    "Usage",
    "pack_token_ids",
    "unpack_token_ids",
]

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]
#: Opaque to everything but the two engines that hand KV blocks over.
KvTransferParams: TypeAlias = dict[str, Any]


class DisaggregationMode(str, enum.Enum):
    """The part of a request's life that a worker takes."""

    AGGREGATED = "aggregated"
    PREFILL = "prefill"
    DECODE = "decode"


def pack_token_ids(token_ids: Sequence[int] | npt.NDArray[Any]) -> bytes:
    """Token ids as packed little-endian uint32, 4 bytes each.

    Raises:
        OverflowError: an id is negative or above 2**32 - 1.
    """
    array = np.asarray(token_ids, dtype="<u4")
    # What tokenizers and caches make are views of packed bytes: those can be had without a copy of them.
    whole: object = array.base
    if isinstance(whole, bytes) and len(whole) == array.nbytes and array.flags.c_contiguous:
        return whole
    return array.tobytes()


def unpack_token_ids(packed: bytes) -> npt.NDArray[np.uint32]:
    """A read-only array over `packed`, shape ``[n_tokens]``, without a copy.

    Raises:
        ValueError: the length is not a multiple of 4.
    """
    array = np.frombuffer(packed, dtype="<u4")
    return array if sys.byteorder == "little" else array.astype(np.uint32)


class SamplingOptions(msgspec.Struct, omit_defaults=True, frozen=True):
    """How the next token is drawn. The defaults draw from the plain distribution."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: dict[int, float] | None = None
    """Token id to what is added to its logit."""
    logprobs: int | None = None
    """None: no logprobs. n: the sampled token's logprob and those of the n likeliest."""
    prompt_logprobs: int | None = None


class StopConditions(msgspec.Struct, omit_defaults=True, frozen=True):
    """When the engine ends a stream. Stop *strings* belong to the frontend, which cancels at the match."""

    max_tokens: int | None = None
    """New tokens, without `prior_output_tokens`. None: up to the context length."""
    min_tokens: int = 0
    """Of the whole answer: `prior_output_tokens` count."""
    stop_token_ids: list[int] = []
    """In addition to the model's own end-of-sequence ids."""
    ignore_eos: bool = False


class GuidedDecoding(msgspec.Struct, omit_defaults=True, frozen=True):
    """A grammar that the output must follow."""

    kind: Literal["json", "json_object", "regex", "choice", "grammar"]
    value: str = ""
    """JSON schema, regular expression, JSON list of choices, or grammar; empty for ``json_object``."""
    param: str = ""
    """The field of the client's request that it is from, which errors name."""


class PreprocessedRequest(msgspec.Struct, omit_defaults=True):
    """One request as an engine sees it: token ids in, always ``n = 1``."""

    request_id: str
    model: str
    token_ids: bytes
    """Prompt, packed by :func:`pack_token_ids`; a migrated stream carries its earlier output at the end."""
    sampling: SamplingOptions = SamplingOptions()
    stop: StopConditions = StopConditions()
    prior_output_tokens: int = 0
    """How many ids at the end of `token_ids` are output of another worker: penalties and min_tokens count them."""
    dp_rank: int | None = None
    lora: str | None = None
    cache_salt: str | None = None
    priority: int = 0
    """Lower is sooner, as in vLLM."""
    kv_transfer_params: KvTransferParams | None = None
    guided: GuidedDecoding | None = None
    deadline_unix_seconds: float | None = None
    trace: dict[str, str] = {}
    """W3C trace context: ``traceparent``, ``tracestate``."""
    embed: bool = False
    """Asks for one embedding of the prompt in place of tokens."""

    def prompt(self) -> npt.NDArray[np.uint32]:
        """All ids, shape ``[n_tokens]``, read-only."""
        return unpack_token_ids(self.token_ids)


class TokenLogprob(msgspec.Struct, omit_defaults=True, frozen=True):
    """Natural-log probability of one token and of the likeliest ones at its position."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []


class Usage(msgspec.Struct, omit_defaults=True, frozen=True):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens whose KV blocks were reused."""
    reasoning_tokens: int = 0
    """Completion tokens that were reasoning; the frontend counts them, engines leave it out."""


class LLMEngineOutput(msgspec.Struct, omit_defaults=True):
    """What one engine step adds to one stream.

    Exactly one output of a stream, the last, has a `finish_reason`; it also has `usage`.
    """

    token_ids: list[int] = []
    """The *new* ids only. The id that stopped the stream is not among them."""
    logprobs: list[TokenLogprob] | None = None
    """One per new id, when asked for."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """On the first output, when asked for: one per prompt id, None for the first."""
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    """The token id that ended a ``stop``, when it was not an end-of-sequence id of the model."""
    usage: Usage | None = None
    kv_transfer_params: KvTransferParams | None = None
    step: int = 0
    """Number of the engine step that made it; only grows."""
    embedding: bytes | None = None
    """Answer to `embed`: packed little-endian float32, shape ``[hidden_size]``."""


class EmbeddingOutput(msgspec.Struct, frozen=True):
    """One embedding, decoded: shape ``[hidden_size]``, float32."""

    vector: list[float]
    prompt_tokens: int
