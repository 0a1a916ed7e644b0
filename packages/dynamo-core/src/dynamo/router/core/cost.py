"""What it costs to send a request to a worker, in KV blocks, and how a temperature turns costs into chances.

The rule is the one that users of the upstream router know, so that their tuning carries over::

    cached  = credit * overlap_blocks + host_cache_hit_weight * host_blocks + disk_cache_hit_weight * disk_blocks
    prefill = max(0, (active_prefill_tokens + prompt_tokens) / block_size - cached)
    cost    = prefill_load_scale * prefill + active_decode_blocks + new_blocks + active_request_blocks * active_requests
    credit  = overlap_score_credit / (1 + overlap_score_credit_decay * excess)

`excess` is how much more prefill a worker has than the least busy candidate, in requests like this one. `new_blocks`
are the prompt's blocks that no running request of the worker holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from dynamo.protocols.routing import RouterOverrides

__all__ = ["CostParameters", "WorkerFacts", "costs", "softmax_weights"]


class CostParameters(msgspec.Struct, frozen=True):
    """See the module's formula; `dynamo.router.settings` says what they mean to users."""

    overlap_score_credit: float = 1.0
    overlap_score_credit_decay: float = 0.0
    prefill_load_scale: float = 1.0
    active_request_blocks: float = 0.0
    host_cache_hit_weight: float = 0.75
    disk_cache_hit_weight: float = 0.25

    def overridden(self, overrides: RouterOverrides | None) -> CostParameters:
        """With the parameters that one request brings."""
        if overrides is None:
            return self
        credit, scale = overrides.overlap_score_credit, overrides.prefill_load_scale
        return msgspec.structs.replace(
            self,
            overlap_score_credit=self.overlap_score_credit if credit is None else credit,
            prefill_load_scale=self.prefill_load_scale if scale is None else scale,
        )


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


def costs(parameters: CostParameters, prompt_tokens: int, workers: Sequence[WorkerFacts]) -> list[float]:
    """The cost of each worker, in blocks; see the module."""
    credit, decay = parameters.overlap_score_credit, parameters.overlap_score_credit_decay
    scale, per_request = parameters.prefill_load_scale, parameters.active_request_blocks
    least = min((worker.active_prefill_tokens for worker in workers), default=0) if decay else 0
    found = []
    for worker in workers:
        waiting = worker.active_prefill_tokens
        own_credit = credit / (1 + decay * (waiting - least) / max(1, prompt_tokens)) if decay else credit
        prefill = (waiting + prompt_tokens) / worker.block_size - own_credit * worker.overlap_blocks
        if worker.lower_tiers is not None:
            host, disk = worker.lower_tiers
            prefill -= parameters.host_cache_hit_weight * host + parameters.disk_cache_hit_weight * disk
        if prefill < 0:
            prefill = 0.0
        found.append(
            scale * prefill + worker.active_decode_blocks + worker.new_blocks + per_request * worker.active_requests
        )
    return found


def softmax_weights(scores: Sequence[float], temperature: float) -> list[float]:
    """Chances, not normalised, of candidates with these scores; higher scores are likelier.

    Scores are first stretched to [0, 1], so that a temperature means the same at every load.
    """
    best, worst = max(scores), min(scores)
    width = (best - worst) * temperature
    if not width:
        return [1.0] * len(scores)
    return [math.exp((score - best) / width) for score in scores]
