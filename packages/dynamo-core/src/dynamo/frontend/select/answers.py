"""What the select service says of a decision."""

from __future__ import annotations

from typing import Any

from dynamo.frontend.select.workers import WorkerPool
from dynamo.router.explain import Decision

__all__ = ["overlap_scores", "potential_loads", "selection"]


def selection(decision: Decision, pool: WorkerPool, *, explain: bool) -> dict[str, Any]:
    """The worker chosen, and with `explain` what all of them had."""
    worker = pool.of(decision.chosen).registration
    place = decision.workers.index(decision.chosen)
    facts, margin = decision.facts[place], decision.margin()
    answer: dict[str, Any] = {
        "worker_id": worker.worker_id,
        "dp_rank": decision.chosen.dp_rank,
        "url": worker.url,
        "model": decision.model,
        "prompt_tokens": decision.prompt_tokens,
        "block_size": facts.block_size,
        "overlap_blocks": facts.overlap_blocks,
        "cached_tokens": min(decision.prompt_tokens, facts.overlap_blocks * facts.block_size),
        "cost_blocks": round(-decision.scores[place], 3),
        "margin_blocks": None if margin is None else round(margin, 3),
    }
    if explain:
        names = {_hexadecimal(decision, place): name for place, name in enumerate(_names(decision, pool))}
        explained = decision.to_json()
        for candidate in explained["candidates"]:
            candidate["worker_id"] = names[candidate["worker"]]
        answer["explain"] = explained
    return answer


def overlap_scores(decision: Decision, pool: WorkerPool) -> dict[str, Any]:
    """Blocks of the prompt that each worker holds."""
    scores = [
        {
            "worker_id": name,
            "dp_rank": key.dp_rank,
            "block_size": facts.block_size,
            "prompt_blocks": decision.prompt_tokens // facts.block_size,
            "overlap_blocks": facts.overlap_blocks,
            "host_blocks": (facts.lower_tiers or (0, 0))[0],
            "disk_blocks": (facts.lower_tiers or (0, 0))[1],
        }
        for name, key, facts in zip(_names(decision, pool), decision.workers, decision.facts, strict=True)
    ]
    return {"model": decision.model, "prompt_tokens": decision.prompt_tokens, "workers": scores}


def potential_loads(decision: Decision, pool: WorkerPool) -> dict[str, Any]:
    """The load that each worker would have with this prompt."""
    loads = [
        {
            "worker_id": name,
            "dp_rank": key.dp_rank,
            "potential_prefill_tokens": facts.active_prefill_tokens
            + max(0, decision.prompt_tokens - facts.overlap_blocks * facts.block_size),
            "potential_decode_blocks": facts.active_decode_blocks + facts.new_blocks,
        }
        for name, key, facts in zip(_names(decision, pool), decision.workers, decision.facts, strict=True)
    ]
    return {"model": decision.model, "prompt_tokens": decision.prompt_tokens, "workers": loads}


def _names(decision: Decision, pool: WorkerPool) -> list[str]:
    return [pool.of(key).registration.worker_id for key in decision.workers]


def _hexadecimal(decision: Decision, place: int) -> str:
    return f"{decision.workers[place].instance_id:014x}"
