"""Settings of the router."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import ConfigDict, field_validator

from dynamo.config.settings import Settings, setting
from dynamo.router.thresholds import BusyThresholds, parse_thresholds

__all__ = ["RouterSettings", "parse_weight"]


class RouterSettings(Settings):
    """How the worker of a request is chosen. Costs are counted in KV blocks."""

    model_config = ConfigDict(allow_inf_nan=False)
    section: ClassVar[str] = "router"

    router_mode: str = setting("round-robin", env=("DYN_ROUTER_MODE",))
    """kv, kv-upstream, round-robin, random, power-of-two, least-loaded, direct, or the name of an installed picker."""
    router_scorers: list[str] = setting([], env=("DYN_ROUTER_SCORERS",), flags=("--router-scorer",))
    """Installed scorers to add, each NAME=BLOCKS: a score of 1 counts as much as so many cached blocks."""
    router_filters: list[str] = setting([], env=("DYN_ROUTER_FILTERS",), flags=("--router-filter",))
    """Names of installed filters to add."""
    router_kv_overlap_score_credit: float = setting(1.0, env=("DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT",), ge=0)
    """Blocks of prefill that one cached block of the prompt saves."""
    router_kv_overlap_score_credit_decay: float = setting(0.0, env=("DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT_DECAY",), ge=0)
    """How fast that credit falls for workers with more waiting prefill than others, per request like this one."""
    router_prefill_load_scale: float | None = setting(None, env=("DYN_ROUTER_PREFILL_LOAD_SCALE",), ge=0)
    """Cost of a block that waits to be prefilled, against one that a request holds. kv: 10, kv-upstream: 1."""
    router_recompute_load_scale: float | None = setting(None, env=("DYN_ROUTER_RECOMPUTE_LOAD_SCALE",), ge=0)
    """Further cost of each block of the request itself that the worker would have to compute, for what that delays and
    displaces. kv: 55, kv-upstream: 0."""
    router_active_request_tokens: float | None = setting(None, env=("DYN_ROUTER_ACTIVE_REQUEST_TOKENS",), ge=0)
    """Each request that a worker has costs as much as it holding so many tokens. kv: 16000, kv-upstream: 0."""
    router_recent_load_tokens: float | None = setting(None, env=("DYN_ROUTER_RECENT_LOAD_TOKENS",), ge=0)
    """What a worker was lately given to compute costs as much as so many waiting prompt tokens, if it is the mean of
    all workers; twice that, if it is twice the mean. kv: 20000, kv-upstream: 0."""
    router_recent_load_seconds: float = setting(60.0, env=("DYN_ROUTER_RECENT_LOAD_SECONDS",), gt=0)
    """How fast that is forgotten: after so long it counts 1/e."""
    router_decode_active_request_weight: float = setting(0.0, env=("DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT",), ge=0)
    """Cost, in blocks, of each request that a worker has."""
    router_host_cache_hit_weight: float = setting(0.75, env=("DYN_ROUTER_HOST_CACHE_HIT_WEIGHT",), ge=0)
    """Blocks of prefill that a block in the worker's host memory saves."""
    router_disk_cache_hit_weight: float = setting(0.25, env=("DYN_ROUTER_DISK_CACHE_HIT_WEIGHT",), ge=0)
    """Blocks of prefill that a block on the worker's disk saves."""
    router_seed: int | None = setting(None, env=("DYN_ROUTER_SEED",), ge=0)
    """Draw the same random numbers in every run; unset: different ones, 0 in replays."""
    router_session_affinity_ttl_seconds: float | None = setting(
        None, env=("DYN_ROUTER_SESSION_AFFINITY_TTL_SECS",), flags=("--router-session-affinity-ttl-secs",), gt=0
    )
    """Keep the requests of a session (header x-dynamo-session-id) at one worker, and forget a session after so long;
    unset: no. For the modes that look at scores: kv, kv-upstream, least-loaded, power-of-two."""
    router_session_affinity_blocks: float = setting(10_000.0, env=("DYN_ROUTER_SESSION_AFFINITY_BLOCKS",), gt=0)
    """As how many cached blocks that counts: with less than a prompt has, another worker may win."""
    router_request_overrides: bool = setting(False, env=("DYN_ROUTER_REQUEST_OVERRIDES",))
    """Let every API key's requests bring cost parameters of their own (header x-dynamo-router) and choose their worker;
    else only admin keys may."""
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
    router_shadow_modes: list[str] = setting([], env=("DYN_ROUTER_SHADOW_MODE",), flags=("--router-shadow-mode",))
    """Policies that score the same requests without acting, each MODE or MODE:SETTING=VALUE:..., as in
    kv:overlap-score-credit=0.5; metrics and GET /debug/routing compare them with the one that acts."""
    router_shadow_cpu_share: float = setting(0.05, env=("DYN_ROUTER_SHADOW_CPU_SHARE",), gt=0, le=1)
    """Most of one core that shadow policies may use; what comes beyond it they do not see."""
    explain: bool = setting(False, env=("DYN_ROUTER_EXPLAIN",))
    """Tell clients why a worker was chosen: header x-dynamo-explain, GET /debug/routing."""
    active_prefill_tokens_threshold: int | None = setting(None, env=("DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD",), ge=1)
    """A worker with more prompt tokens admitted and not computed is busy; when all are, the answer is 503."""
    active_decode_blocks_threshold: float | None = setting(
        None, env=("DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD",), gt=0, le=1
    )
    """A worker that uses more than this part of its KV blocks is busy; when all are, the answer is 503."""
    busy_thresholds: list[str] = setting([], env=("DYN_BUSY_THRESHOLDS",), flags=("--busy-threshold",))
    """Thresholds of one model in place of these two: MODEL=BLOCKS:TOKENS, as in llama=0.85:10000; either number may be
    left out. POST /busy_threshold changes them."""
    router_queue_threshold: float | None = setting(None, env=("DYN_ROUTER_QUEUE_THRESHOLD",), ge=0)
    """Requests wait in the router while every worker has more prompt tokens to compute than this many of its batches
    (max_num_batched_tokens) hold; unset: no queue."""
    router_queue_max_requests: int = setting(1024, env=("DYN_ROUTER_QUEUE_MAX_REQUESTS",), ge=1)
    """Most requests of one model that wait there; beyond it the answer is 503, or 429 to who has most of them."""
    router_queue_max_tokens: int = setting(4_000_000, env=("DYN_ROUTER_QUEUE_MAX_TOKENS",), ge=1)
    """Most prompt tokens that they have together."""
    router_queue_max_wait_seconds: float = setting(60.0, env=("DYN_ROUTER_QUEUE_MAX_WAIT_SECONDS",), gt=0)
    """A request that has waited so long is answered with 503."""
    router_queue_ttft_target_ms: float = setting(2000.0, env=("DYN_ROUTER_QUEUE_TTFT_TARGET_MS",), gt=0)
    """When a request should have its first token, from its arrival on; the soonest of a tenant goes first. Requests
    bring their own in the header x-dynamo-ttft-target-ms."""
    router_queue_tenant_weights: list[str] = setting(
        [], env=("DYN_ROUTER_QUEUE_TENANT_WEIGHTS",), flags=("--router-queue-tenant-weight",)
    )
    """Shares of tenants (API keys), each NAME=WEIGHT; 1 for others."""
    router_queue_quantum_tokens: int = setting(2048, env=("DYN_ROUTER_QUEUE_QUANTUM_TOKENS",), ge=1)
    """Prompt tokens that a tenant of weight 1 may have computed before it is the next one's turn."""
    router_replica_sync: bool = setting(True, env=("DYN_ROUTER_REPLICA_SYNC",))
    """Tell the other frontends what is sent to which worker, where the router mode looks at load."""

    def thresholds_of(self, model: str) -> BusyThresholds:
        """From when on workers of `model` are busy: its own thresholds, else those of all models."""
        own = dict(map(parse_thresholds, self.busy_thresholds))
        common = BusyThresholds(self.active_decode_blocks_threshold, self.active_prefill_tokens_threshold)
        return own.get(model, common)

    @field_validator("busy_thresholds")
    @classmethod
    def _readable_thresholds(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_thresholds(text)
        return value

    @field_validator("router_queue_tenant_weights")
    @classmethod
    def _readable_weights(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_weight(text)
        return value


def parse_weight(text: str) -> tuple[str, float]:
    """A tenant and its weight, from ``NAME=WEIGHT``.

    Raises:
        ValueError: it is not of that form, or the weight is not between 0.001 and 1000.
    """
    name, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not name or not 0.001 <= weight <= 1000:
        raise ValueError(f"{text!r}: write it as NAME=WEIGHT, with a weight between 0.001 and 1000")
    return name, weight
