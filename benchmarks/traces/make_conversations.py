"""Makes `conversations.jsonl`, a small trace for tests and for those who have no other.

Run as `python -m benchmarks.traces.make_conversations`.

Everything that makes routing hard is in it: one block that nearly all prompts begin with, five applications with system
prompts of their own, conversations of a heavy-tailed number of turns whose prompts grow, and a fifth of requests that
come once. The numbers are drawn from plain distributions, not taken from any service.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["PATH", "requests"]

PATH = Path(__file__).with_name("conversations.jsonl")
_BLOCK = 512
_SECONDS = 600.0
_CONVERSATIONS_PER_SECOND = 0.8


def requests(seed: int = 1) -> Iterator[dict[str, Any]]:
    """Requests of ten minutes, by time."""
    draw = random.Random(seed)
    fresh = itertools.count(100).__next__
    applications = [[0, *(fresh() for _ in range(draw.randrange(2, 12)))] for _ in range(5)]
    upcoming: list[tuple[float, int, list[int], int]] = []
    start = 0.0
    while start < _SECONDS:
        start += draw.expovariate(_CONVERSATIONS_PER_SECOND)
        once = draw.random() < 0.2
        prompt = [fresh()] if once else list(draw.choice(applications))
        turns = 1 if once else min(30, int(draw.paretovariate(1.1)) + 1)
        heapq.heappush(upcoming, (start, fresh(), prompt, turns))
    while upcoming:
        time, number, before, turns = heapq.heappop(upcoming)
        if time >= _SECONDS:
            continue
        ids = before + [fresh() for _ in range(min(40, int(draw.paretovariate(0.9))))]
        output = min(1500, 1 + int(draw.expovariate(1 / 150)))
        tokens = len(ids) * _BLOCK + draw.randrange(_BLOCK)
        yield {"timestamp": round(time * 1000), "input_length": tokens, "output_length": output, "hash_ids": ids}
        if turns > 1:
            pause = 5.0 + draw.expovariate(1 / 25.0)
            heapq.heappush(upcoming, (time + pause, number, ids, turns - 1))


if __name__ == "__main__":
    with PATH.open("w", encoding="utf-8") as file:
        for request in requests():
            file.write(json.dumps(request, separators=(",", ":")) + "\n")
