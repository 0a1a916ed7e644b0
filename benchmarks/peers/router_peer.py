"""Measures upstream's compiled router: reads one work per line, prints CPU seconds per unit of it.

Runs in an environment with `ai-dynamo-runtime`, which shares our namespace; `benchmarks.router` starts it.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

from benchmarks.peers.router_scenario import BLOCK_SIZE, conversations, events, prompt

PEER: Any = importlib.import_module("dynamo._core")
CHAINS = conversations()


def encoded(holders: int) -> list[tuple[int, bytes]]:
    """The events as its only entry point takes them."""
    made = []
    for number, (worker, hashes, parent) in enumerate(events(CHAINS, holders)):
        blocks = [{"block_hash": value, "tokens_hash": value} for value in hashes]
        data = {"stored": {"parent_hash": parent, "blocks": blocks}}
        made.append((worker, json.dumps({"event_id": number, "dp_rank": 0, "data": data}).encode()))
    return made


def filled(holders: int, times: int) -> tuple[Any, float]:
    """A tree with the events, and CPU seconds per event, over as many fresh trees."""
    made, spent, tree = encoded(holders), 0.0, None
    for _ in range(times):
        tree = PEER.RadixTree()
        start = time.process_time()
        for worker, event in made:
            tree.apply_event(worker, event)
        spent += time.process_time() - start
    return tree, spent / (times * len(made))


def measure(kind: str, size: int, times: int) -> float:
    """CPU seconds per unit of one work."""
    if kind == "store":
        return filled(size, times)[1]
    if kind == "hash":
        tokens = prompt(size)
        start = time.process_time()
        for _ in range(times):
            PEER.compute_block_hash_for_seq(tokens, BLOCK_SIZE)
        return (time.process_time() - start) / times
    queries = [chain[:size] for chain in CHAINS]
    start = time.process_time()
    for _ in range(times):
        for query in queries:
            TREE.find_matches(query)
    return (time.process_time() - start) / (times * len(queries))


TREE = filled(8, 1)[0]
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    print(measure(asked["kind"], asked["size"], asked["times"]), flush=True)
