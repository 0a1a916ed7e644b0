"""Counts the copies of a block: vLLM computes equal blocks twice when nobody shares them, and announces each.

Two requests in one step, or one with prompt logprobs, which reads no cache, bring a second copy of a block. Its hash is
in the cache until the last copy is evicted, so only the first BlockStored and the last BlockRemoved tell anything. The
vLLM adapter passes its events through here, and the select service those of the servers that it listens to. Events of
engines that announce a block once come out as they went in.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from dynamo.protocols.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EngineKvEvent,
    EngineKvEvents,
)

__all__ = ["CopyCounter"]

_Hash: TypeAlias = "int | bytes"


class CopyCounter:
    """The cached blocks of all ranks of an engine, as far as events told."""

    def __init__(self) -> None:
        self._copies: dict[int, dict[str, Counter[_Hash]]] = {}

    def __len__(self) -> int:
        """Different blocks of all ranks and media; each costs memory here."""
        return sum(len(copies) for media in self._copies.values() for copies in media.values())

    def blocks(self, dp_rank: int) -> int:
        """Different blocks on the device that the prefix cache of a rank has, in use or not."""
        return len(self._copies.get(dp_rank, {}).get("device", ()))

    def first_and_last(self, batch: EngineKvEvents) -> EngineKvEvents:
        """What `batch` changes, without what concerns only copies. Its events may be none."""
        ranks = self._copies.setdefault(batch.dp_rank, {})
        events: list[EngineKvEvent] = []
        for event in batch.events:
            if isinstance(event, AllBlocksCleared):
                ranks.clear()
                events.append(event)
                continue
            copies = ranks.setdefault(event.medium, Counter())
            events += _stored(event, copies) if isinstance(event, BlockStored) else _removed(event, copies)
        return EngineKvEvents(events, batch.dp_rank)


def _stored(event: BlockStored, copies: Counter[_Hash]) -> list[BlockStored]:
    """The new blocks, as one event per run of neighbours."""
    runs: list[tuple[_Hash | None, int, list[_Hash]]] = []
    parent, in_run = event.parent_hash, False
    for index, block in enumerate(event.block_hashes):
        copies[block] += 1
        if copies[block] > 1:
            in_run = False
        elif in_run:
            runs[-1][2].append(block)
        else:
            runs.append((parent, index, [block]))
            in_run = True
        parent = block
    if len(runs) == 1 and len(runs[0][2]) == len(event.block_hashes):
        return [event]
    size = event.block_size
    return [
        BlockStored(
            block_hashes=hashes,
            token_ids=event.token_ids[first * size : (first + len(hashes)) * size],
            block_size=size,
            parent_hash=parent,
            lora=event.lora,
            cache_salt=event.cache_salt,
            medium=event.medium,
            group=event.group,
        )
        for parent, first, hashes in runs
    ]


def _removed(event: BlockRemoved, copies: Counter[_Hash]) -> list[BlockRemoved]:
    """The blocks of which no copy is left. One that was never announced counts as gone."""
    gone = []
    for block in event.block_hashes:
        copies[block] -= 1
        if copies[block] <= 0:
            del copies[block]
            gone.append(block)
    return [BlockRemoved(gone, event.medium, event.group)] if gone else []
