"""What a router's filters, scorers and pickers see (DESIGN 4, hook `dynamo_register_routers`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.hashing import seed_of, sequence_hashes
from dynamo.protocols.llm import DisaggregationMode, unpack_token_ids
from dynamo.protocols.load import EngineLoad

__all__ = [
    "CandidateView",
    "PromptHashes",
    "RouteRequest",
    "RouterOverrides",
    "WorkerFilter",
    "WorkerPicker",
    "WorkerScorer",
]


class PromptHashes:
    """Sequence hashes of one prompt, made when first asked for, once per block size."""

    __slots__ = ("_by_block_size", "_cache_salt", "_lora", "_token_ids")

    def __init__(self, token_ids: bytes, lora: str | None = None, cache_salt: str | None = None) -> None:
        """`token_ids` are packed little-endian uint32."""
        self._token_ids = token_ids
        self._lora = lora
        self._cache_salt = cache_salt
        self._by_block_size: dict[int, list[int]] = {}

    def of(self, block_size: int) -> list[int]:
        """One hash per full block of `block_size` tokens; the list is shared and must not be changed."""
        found = self._by_block_size.get(block_size)
        if found is None:
            seed = seed_of(self._lora, self._cache_salt)
            found = sequence_hashes(unpack_token_ids(self._token_ids), block_size, seed).tolist()
            self._by_block_size[block_size] = found
        return found


class RouterOverrides(msgspec.Struct, frozen=True):
    """Parameters of one decision; None: the router's own, see `dynamo.router.settings`."""

    overlap_score_credit: float | None = None
    prefill_load_scale: float | None = None
    temperature: float | None = None


class RouteRequest(msgspec.Struct, frozen=True):
    """The facts of a request that a routing decision may use."""

    request_id: str
    model: str
    prompt_tokens: int = 0
    mode: DisaggregationMode = DisaggregationMode.AGGREGATED
    lora: str | None = None
    priority: int = 0
    pinned: WorkerKey | None = None
    """The caller chose this worker (mode `direct`)."""
    excluded: frozenset[int] = frozenset()
    """Instances that already failed this request."""
    prompt: PromptHashes | None = None
    """Names of the prompt's blocks; None: nothing is known of it."""
    overrides: RouterOverrides | None = None


class CandidateView(Protocol):
    """One worker that could take the request, as the router knows it at this moment."""

    @property
    def key(self) -> WorkerKey:
        """The routing key."""
        ...

    @property
    def record(self) -> InstanceRecord:
        """Its discovery record, with the model deployment card."""
        ...

    @property
    def active_requests(self) -> int:
        """Requests that this router sent and that have not ended."""
        ...

    @property
    def load(self) -> EngineLoad | None:
        """What the worker last said of itself; None when it says nothing, or has not for some seconds."""
        ...

    @property
    def overlap_blocks(self) -> int:
        """Blocks of this request's prompt that it holds; 0 unless a scorer of the policy consumes it."""
        ...

    @property
    def active_prefill_tokens(self) -> int:
        """Prompt tokens that it has been given and not computed; 0 unless a scorer of the policy consumes it."""
        ...

    @property
    def active_decode_blocks(self) -> int:
        """Blocks that its running requests hold; 0 unless a scorer of the policy consumes it."""
        ...


class WorkerFilter(Protocol):
    """Keeps the candidates that may take a request."""

    def filter(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[CandidateView]:
        """Those that may, in their order. Pure and quick: it runs for every request."""
        ...


class WorkerScorer(Protocol):
    """Rates candidates."""

    @property
    def consumes(self) -> tuple[str, ...]:
        """Names of the candidate attributes that it reads."""
        ...

    def score(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[float]:
        """One number in [0, 1] per candidate, 1 best."""
        ...


class WorkerPicker(Protocol):
    """Chooses one candidate."""

    def pick(
        self, request: RouteRequest, candidates: Sequence[CandidateView], scores: Sequence[float]
    ) -> CandidateView:
        """One of `candidates`, which is not empty; `scores` are weighted sums, higher is better."""
        ...
