"""Settings of the router."""

from __future__ import annotations

from typing import ClassVar

from dynamo.config.settings import Settings, setting

__all__ = ["RouterSettings"]


class RouterSettings(Settings):
    """How the worker of a request is chosen. Costs are counted in KV blocks."""

    section: ClassVar[str] = "router"

    router_mode: str = setting("round-robin", env=("DYN_ROUTER_MODE",))
    """kv, round-robin, random, power-of-two, least-loaded, direct, or the name of an installed router picker."""
    router_scorers: list[str] = setting([], env=("DYN_ROUTER_SCORERS",), flags=("--router-scorer",))
    """Installed scorers to add, each NAME=BLOCKS: a score of 1 lowers a worker's cost by so many blocks."""
    router_filters: list[str] = setting([], env=("DYN_ROUTER_FILTERS",), flags=("--router-filter",))
    """Names of installed filters to add."""
    router_kv_overlap_score_credit: float = setting(1.0, env=("DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT",), ge=0)
    """Blocks of prefill that one cached block of the prompt saves."""
    router_kv_overlap_score_credit_decay: float = setting(0.0, env=("DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT_DECAY",), ge=0)
    """How fast that credit falls for workers with more waiting prefill than others, per request like this one."""
    router_prefill_load_scale: float = setting(1.0, env=("DYN_ROUTER_PREFILL_LOAD_SCALE",), ge=0)
    """Weight of a block to prefill against one to decode."""
    router_decode_active_request_weight: float = setting(0.0, env=("DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT",), ge=0)
    """Cost, in blocks, of each request that a worker has."""
    router_host_cache_hit_weight: float = setting(0.75, env=("DYN_ROUTER_HOST_CACHE_HIT_WEIGHT",), ge=0)
    """Blocks of prefill that a block in the worker's host memory saves."""
    router_disk_cache_hit_weight: float = setting(0.25, env=("DYN_ROUTER_DISK_CACHE_HIT_WEIGHT",), ge=0)
    """Blocks of prefill that a block on the worker's disk saves."""
    router_temperature: float = setting(0.0, env=("DYN_ROUTER_TEMPERATURE",), ge=0)
    """0 takes the cheapest worker; above it workers are drawn, the cheap ones more often."""
    router_use_kv_events: bool = setting(
        True, env=("DYN_ROUTER_USE_KV_EVENTS",), flags=("--router-kv-events", "--kv-events")
    )
    """Follow what workers say of their caches; without, remember what was routed to them."""
    router_ttl_seconds: float = setting(120.0, env=("DYN_ROUTER_TTL_SECS",), flags=("--router-ttl-secs",), gt=0)
    """How long what was routed to a worker is believed to be in its cache, where no KV events are followed."""
    router_max_index_blocks: int | None = setting(None, env=("DYN_ROUTER_MAX_INDEX_BLOCKS",), ge=1024)
    """Most blocks of one model that are indexed, at about 100 bytes each; beyond it the longest unused go."""
    router_active_request_lifetime_seconds: float = setting(
        900.0, env=("DYN_ROUTER_ACTIVE_REQUEST_LIFETIME_SECONDS",), gt=0
    )
    """A request whose end was never seen counts as load for so long; must be longer than any request."""
    router_decision_log_size: int = setting(256, env=("DYN_ROUTER_DECISION_LOG_SIZE",), ge=0)
    """Decisions that are kept for GET /debug/routing and `dynamo explain`, with --explain."""
    explain: bool = setting(False, env=("DYN_ROUTER_EXPLAIN",))
    """Tell clients why a worker was chosen: header x-dynamo-explain, GET /debug/routing."""
    active_prefill_tokens_threshold: int | None = setting(None, env=("DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD",), ge=1)
    """A worker with more prompt tokens admitted and not computed is busy; when all are, the answer is 503."""
    active_decode_blocks_threshold: float | None = setting(
        None, env=("DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD",), gt=0, le=1
    )
    """A worker that uses more than this part of its KV blocks is busy; when all are, the answer is 503."""
