"""What it costs to send a request to a worker, in KV blocks, and how a temperature turns costs into chances.

::

    cached    = credit * overlap_blocks + host_cache_hit_weight * host_blocks + disk_cache_hit_weight * disk_blocks
    recompute = max(0, prompt_tokens / block_size - cached)
    prefill   = max(0, (active_prefill_tokens + prompt_tokens) / block_size - cached)
    requests  = (active_request_blocks + active_request_tokens / block_size) * active_requests
    cost      = prefill_load_scale * prefill + recompute_load_scale * recompute + active_decode_blocks + new_blocks
                + requests + prefill_load_scale * recent / block_size
    recent    = recent_load_tokens * recent_tokens / max(mean of all candidates' recent_tokens, 32,000)
    credit    = overlap_score_credit / (1 + overlap_score_credit_decay * excess)

The unit is a block that a running request holds. `excess` is how much more prefill a worker has than the least busy
candidate, in requests like this one. `new_blocks` are the prompt's blocks that no running request of the worker holds.
`recent_tokens` is what the worker was given to compute, forgotten at an exponential rate; it counts against the mean,
so that it weighs the same at every load, and less where there is hardly any.

With nothing but the defaults of `CostParameters` it is the rule that users of the upstream router know, so that their
tuning carries over. `DEFAULT_COST` is what mode ``kv`` has: see docs/explanation/routing.md for why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from dynamo.protocols.llm import DisaggregationMode
from dynamo.protocols.routing import RouterOverrides

__all__ = [
    "DEFAULT_COST",
    "UPSTREAM_COST",
    "CostParameters",
    "CostProfiles",
    "WorkerFacts",
    "costs",
    "softmax_weights",
    "uncached_tokens",
]


class CostParameters(msgspec.Struct, frozen=True):
    """See the module's formula; `dynamo.router.settings` says what they mean to users."""

    overlap_score_credit: float = 1.0
    overlap_score_credit_decay: float = 0.0
    prefill_load_scale: float = 1.0
    active_request_blocks: float = 0.0
    host_cache_hit_weight: float = 0.75
    disk_cache_hit_weight: float = 0.25
    recompute_load_scale: float = 0.0
    active_request_tokens: float = 0.0
    recent_load_tokens: float = 0.0

    @property
    def cached_block(self) -> float:
        """What a block of the prompt that a worker holds saves; 1 where prompts are not computed."""
        return (self.prefill_load_scale + self.recompute_load_scale) or 1.0

    def overridden(self, overrides: RouterOverrides | None) -> CostParameters:
        """With the parameters that one request brings."""
        if overrides is None:
            return self
        named = {name: value for name in _OVERRIDABLE if (value := getattr(overrides, name)) is not None}
        return msgspec.structs.replace(self, **named) if named else self


_OVERRIDABLE = ("overlap_score_credit", "prefill_load_scale", "recompute_load_scale", "recent_load_tokens")


class CostProfiles(NamedTuple):
    """A request's parameters by what its worker does for it."""

    aggregated: CostParameters
    prefill: CostParameters
    """The worker computes the prompt and hands it over."""
    decode: CostParameters
    """The worker gets the prompt's KV from another one, and computes none of it."""

    def of(self, mode: DisaggregationMode) -> CostParameters:
        """Those of requests that are sent in `mode`."""
        if mode is DisaggregationMode.DECODE:
            return self.decode
        return self.prefill if mode is DisaggregationMode.PREFILL else self.aggregated

    @classmethod
    def from_aggregated(cls, aggregated: CostParameters) -> CostProfiles:
        """Profiles that follow from how whole requests are routed.

        A prefill worker has no answers in work that a prompt would delay. On a decode worker no prompt is computed:
        what counts is the context that it reads at each step, and the requests: sampling one takes as long as reading
        some 400 tokens of context (`dynamo.mocker.perf_model`: 20 us against 52 ns).
        """
        replace = msgspec.structs.replace
        return cls(
            aggregated,
            replace(aggregated, active_request_tokens=0.0),
            replace(
                aggregated,
                overlap_score_credit=0.0,
                prefill_load_scale=0.0,
                host_cache_hit_weight=0.0,
                disk_cache_hit_weight=0.0,
                recompute_load_scale=0.0,
                recent_load_tokens=0.0,
                active_request_tokens=min(aggregated.active_request_tokens, 400.0),
            ),
        )


#: Less than this was no load worth balancing: some 2 % of what an accelerator prefills in a minute.
_LEAST_RECENT_TOKENS = 32_000.0
#: Found by replaying public and synthetic traces at several loads (`benchmarks.routing_quality`).
DEFAULT_COST = CostParameters(
    prefill_load_scale=10.0, recompute_load_scale=55.0, active_request_tokens=16_000.0, recent_load_tokens=20_000.0
)
#: What the upstream router does without flags.
UPSTREAM_COST = CostParameters()


class WorkerFacts(msgspec.Struct, gc=False):
    """What a decision knows of one worker; made anew for every decision."""

    block_size: int
    overlap_blocks: int = 0
    new_blocks: int = 0
    active_prefill_tokens: int = 0
    active_decode_blocks: int = 0
    active_requests: int = 0
    lower_tiers: tuple[int, int] | None = None
    """Blocks behind the overlap that host memory holds, and behind those that disk holds; None for none."""
    recent_tokens: float = 0.0
    """Prompt tokens that it was lately given to compute, the older ones counting less."""


def uncached_tokens(facts: WorkerFacts, prompt_tokens: int) -> int:
    """Tokens of a prompt that a worker with these facts would have to compute."""
    return max(0, prompt_tokens - facts.overlap_blocks * facts.block_size)


def costs(parameters: CostParameters, prompt_tokens: int, workers: Sequence[WorkerFacts]) -> list[float]:
    """The cost of each worker, in blocks; see the module."""
    credit, decay = parameters.overlap_score_credit, parameters.overlap_score_credit_decay
    scale, recompute_scale = parameters.prefill_load_scale, parameters.recompute_load_scale
    prompt = per_request = recent_scale = 0.0
    least = min((worker.active_prefill_tokens for worker in workers), default=0) if decay else 0
    size = 0
    found = []
    for worker in workers:
        if worker.block_size != size:  # nearly never: the workers of a model are alike
            size = worker.block_size
            prompt = prompt_tokens / size
            per_request = parameters.active_request_blocks + parameters.active_request_tokens / size
            recent_scale = _recent_scale(parameters, workers) / size
        waiting = worker.active_prefill_tokens
        own_credit = credit / (1 + decay * (waiting - least) / max(1, prompt_tokens)) if decay else credit
        recompute = prompt - own_credit * worker.overlap_blocks
        if worker.lower_tiers is not None:
            host, disk = worker.lower_tiers
            recompute -= parameters.host_cache_hit_weight * host + parameters.disk_cache_hit_weight * disk
        prefill = recompute + waiting / size
        cost = worker.active_decode_blocks + worker.new_blocks + per_request * worker.active_requests
        if prefill > 0.0:
            cost += scale * prefill
            if recompute > 0.0:
                cost += recompute_scale * recompute
        if recent_scale:
            cost += recent_scale * worker.recent_tokens
        found.append(cost)
    return found


def _recent_scale(parameters: CostParameters, workers: Sequence[WorkerFacts]) -> float:
    """Cost, times the block size, of each token that a worker was lately given."""
    weight = parameters.prefill_load_scale * parameters.recent_load_tokens
    if not weight or not workers:
        return 0.0
    mean = sum([worker.recent_tokens for worker in workers]) / len(workers)
    return weight / max(mean, _LEAST_RECENT_TOKENS)


def softmax_weights(scores: Sequence[float], temperature: float) -> list[float]:
    """Chances, not normalised, of candidates with these scores; higher scores are likelier.

    Scores are first stretched to [0, 1], so that a temperature means the same at every load.
    """
    best, worst = max(scores), min(scores)
    width = (best - worst) * temperature
    if not width:
        return [1.0] * len(scores)
    return [math.exp((score - best) / width) for score in scores]
