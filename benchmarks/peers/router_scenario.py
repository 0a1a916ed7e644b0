"""What both sides of the router benchmark do; standard library only, since the peer's environment has nothing else.

50 conversations of 1,024 blocks; 8 of 64 workers hold each of them, to 64, 256, 512 or 1,024 blocks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["BLOCK_SIZE", "Event", "conversations", "events", "prompt"]

BLOCK_SIZE = 64
EVENT_BLOCKS = 16
WORKERS = 64
#: worker, hashes, parent
Event = tuple[int, list[int], "int | None"]


def conversations() -> list[list[int]]:
    """Sequence hashes of the prompts."""
    rng = random.Random(1)
    return [[rng.getrandbits(63) for _ in range(1024)] for _ in range(50)]


def events(chains: list[list[int]], holders: int) -> Iterator[Event]:
    """Stored events of 16 blocks. With one holder all blocks are new, with 8 most are known of others."""
    rng = random.Random(2)
    for chain in chains:
        for worker in rng.sample(range(WORKERS), holders):
            depth = 1024 if holders == 1 else rng.choice((64, 256, 512, 1024))
            for start in range(0, depth, EVENT_BLOCKS):
                yield worker, chain[start : start + EVENT_BLOCKS], chain[start - 1] if start else None


def prompt(blocks: int) -> list[int]:
    """Token ids of a prompt."""
    rng = random.Random(3)
    return [rng.randrange(150_000) for _ in range(blocks * BLOCK_SIZE)]
