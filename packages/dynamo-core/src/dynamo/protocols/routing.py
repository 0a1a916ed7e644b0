"""What a router's filters, scorers and pickers see (DESIGN 4, hook `dynamo_register_routers`)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.claims import Claim
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.hashing import HashState, Uint64Array, block_hashes, extend, seed_of
from dynamo.protocols.llm import DisaggregationMode, unpack_token_ids
from dynamo.protocols.load import EngineLoad

__all__ = [
    "CandidateView",
    "LenientPicker",
    "PrefixHashes",
    "PromptHashes",
    "RouteListener",
    "RouteRequest",
    "RouterOverrides",
    "SeededPicker",
    "WorkerFilter",
    "WorkerPicker",
    "WorkerScorer",
]


#: Kinds of hashes (block size and seed) that are kept of one piece of a prompt.
_KEPT_KINDS = 4
#: Hashes of longer prompts come as an array: routing looks at few of them, and making numbers of all takes longer than
#: all of the rest. A list's are looked at faster.
_LISTED_BLOCKS = 512


class PrefixHashes:
    """Hashes of the blocks that end within one piece of a prompt's beginning, for prompts that share it.

    Only for prompts that are the same up to the piece's end.
    """

    __slots__ = ("_kept", "end")

    def __init__(self, end: int) -> None:
        self.end = end
        """Tokens of the prompt up to the end of the piece."""
        # Arrays: lists of so many numbers take five times the memory, and the garbage collector looks at each number.
        self._kept: dict[tuple[int, int], tuple[Uint64Array, HashState]] = {}

    def get(self, block_size: int, seed: int) -> tuple[Uint64Array, HashState] | None:
        """The hashes, and the state after the last of them; None: not known yet."""
        return self._kept.get((block_size, seed))

    def keep(self, block_size: int, seed: int, hashes: Uint64Array, state: HashState) -> None:
        """Remember what :meth:`get` will give."""
        if len(self._kept) >= _KEPT_KINDS:
            self._kept.clear()
        self._kept[block_size, seed] = (hashes, state)


class PromptHashes:
    """Sequence hashes of one prompt, made when first asked for, once per block size."""

    __slots__ = ("_by_block_size", "_cache_salt", "_lora", "_prefix", "_token_ids")

    def __init__(
        self,
        token_ids: bytes,
        lora: str | None = None,
        cache_salt: str | None = None,
        prefix: Sequence[PrefixHashes] = (),
    ) -> None:
        """`token_ids` are packed little-endian uint32; `prefix` are the pieces that they begin with, in order."""
        self._token_ids = token_ids
        self._lora = lora
        self._cache_salt = cache_salt
        self._prefix = prefix
        self._by_block_size: dict[int, Sequence[int]] = {}

    def of(self, block_size: int) -> Sequence[int]:
        """One hash per full block of `block_size` tokens; what is returned is shared and must not be changed."""
        found = self._by_block_size.get(block_size)
        if found is None:
            found = self._by_block_size[block_size] = self._make(block_size)
        return found

    def _make(self, block_size: int) -> Sequence[int]:
        seed = seed_of(self._lora, self._cache_salt)
        made: list[Uint64Array] = []
        state = HashState(seed, 0)
        pieces = iter(self._prefix)
        for piece in pieces:
            known = piece.get(block_size, seed)
            if known is None:
                break
            made.append(known[0])
            state = known[1]
        else:
            piece = None
        tokens = unpack_token_ids(self._token_ids)[state.blocks * block_size :]
        hashes, values = extend(state, block_hashes(tokens, block_size))
        known_blocks, done = state.blocks, 0
        while piece is not None:
            # What was made in one go is divided among the pieces, so that each can be used without the ones behind it.
            ended = piece.end // block_size - known_blocks
            if ended > done:
                after = HashState(int(values[ended - 1]), known_blocks + ended)
            else:
                after = HashState(int(values[done - 1]), known_blocks + done) if done else state
            piece.keep(block_size, seed, hashes[done:ended].copy(), after)
            done = ended
            piece = next(pieces, None)
        return _numbers([*made, hashes])


def _numbers(parts: list[Uint64Array]) -> Sequence[int]:
    if sum(map(len, parts)) <= _LISTED_BLOCKS:
        return [number for part in parts for number in part.tolist()]
    numbers = array("Q")
    for part in parts:
        numbers.frombytes(part.tobytes())
    return numbers


class RouterOverrides(msgspec.Struct, frozen=True):
    """Parameters of one decision; None: the router's own, see `dynamo.router.settings`."""

    overlap_score_credit: float | None = None
    prefill_load_scale: float | None = None
    temperature: float | None = None
    recompute_load_scale: float | None = None
    recent_load_tokens: float | None = None


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
    session: str | None = None
    """What the caller names its conversation; unique among callers."""
    tenant: str = ""
    """Whose request it is: the name of an API key; empty where there are none."""
    ttft_target_seconds: float | None = None
    """When its first token should come, from its arrival on; None: the router's own target."""
    claim: Claim | None = None
    """A worker's offer to take it; for a `LenientPicker`, if the worker is among the candidates."""


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


@runtime_checkable
class RouteListener(Protocol):
    """A scorer that is told where requests went. Optional."""

    def routed(self, request: RouteRequest, worker: WorkerKey, now: float) -> None:
        """`request` was sent to `worker`; `now` is any monotonic clock, in seconds."""
        ...


@runtime_checkable
class SeededPicker(Protocol):
    """A picker that draws random numbers and can draw the same ones again. Optional."""

    def seed(self, value: int) -> None:
        """Begin anew with the numbers that belong to `value`."""
        ...


@runtime_checkable
class LenientPicker(Protocol):
    """A picker to which one candidate is as good as another, and that takes who offers itself. Optional."""

    @property
    def lenient(self) -> bool:
        """Whether workers should be asked, which costs a round trip; :meth:`pick` then honours `RouteRequest.claim`."""
        ...
