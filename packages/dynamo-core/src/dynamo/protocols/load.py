"""Load of a worker, as engines report it and routers use it."""

from __future__ import annotations

import msgspec

__all__ = ["LOAD_SUBJECT", "EngineLoad", "WorkerLoad"]

#: Subject of the event plane that carries `WorkerLoad`.
LOAD_SUBJECT = "load"


class EngineLoad(msgspec.Struct, omit_defaults=True, frozen=True):
    """One data-parallel rank at one moment."""

    dp_rank: int = 0
    waiting_requests: int = 0
    running_requests: int = 0
    preempted_requests: int = 0
    """Counted since the engine started."""
    used_kv_blocks: int = 0
    """Blocks that running requests hold."""
    cached_kv_blocks: int = 0
    """Blocks that only the prefix cache holds; they can be evicted."""
    total_kv_blocks: int = 0
    active_prefill_tokens: int = 0
    """Prompt tokens that are admitted and not yet computed."""
    active_decode_blocks: int = 0
    prefix_cache_queried_tokens: int = 0
    """Prompt tokens that were looked up in the prefix cache since the engine started; 0 where it does not say."""
    prefix_cache_hit_tokens: int = 0
    """Those of them that were found."""


class WorkerLoad(msgspec.Struct, omit_defaults=True, frozen=True):
    """Load of all ranks of one instance, as it is published."""

    instance_id: int
    model: str
    ranks: list[EngineLoad]
