"""What one engine rank has stored, by the engine's opaque block hashes and by ours.

`dynamo.worker.kv_publisher` keeps one per rank to publish from; `dynamo.frontend.select` one per rank of the engines
that it listens to itself.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from dynamo.protocols.hashing import HashState, block_hashes, extend, seed_of
from dynamo.protocols.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EngineKvEvent,
    HashesRemoved,
    HashesStored,
    KvEventBatch,
)

__all__ = ["REPLAY_BATCHES", "RankMirror", "RouterKvEvent"]

RouterKvEvent: TypeAlias = "HashesStored | HashesRemoved | AllBlocksCleared"

#: Batches that are kept for listeners that missed some; older ones cost a whole snapshot.
REPLAY_BATCHES = 1024


class _Block(NamedTuple):
    """A stored block: its sequence hash, its parent's, and the state that its children go on from."""

    sequence_hash: int
    parent: int | None
    state: HashState


class RankMirror:
    """What one data-parallel rank has stored, by the engine's hashes and by ours."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.sequence = -1
        self.orphans = 0
        """Blocks that were dropped because their parent is unknown."""
        self._blocks: dict[tuple[str, int | bytes], _Block] = {}
        self._copies: Counter[tuple[str, int]] = Counter()
        self.recent: deque[KvEventBatch] = deque(maxlen=REPLAY_BATCHES)

    def __len__(self) -> int:
        return len(self._blocks)

    def translate(self, events: Sequence[EngineKvEvent]) -> list[RouterKvEvent]:
        """Enter the events of one engine step; what they mean in our hashes, without what tells nothing new."""
        translated: list[RouterKvEvent] = []
        for event in events:
            if isinstance(event, BlockStored):
                translated += self.stored(event)
            elif isinstance(event, BlockRemoved):
                removed = self.removed(event)
                translated += [removed] if removed else []
            else:
                self.clear()
                translated.append(event)
        return translated

    def stored(self, event: BlockStored) -> list[RouterKvEvent]:
        """Enter blocks; nothing when their parent is unknown.

        An engine that stores other content under a hash of before has dropped what was there.
        """
        parent = self._parent(event)
        if parent is None and event.parent_hash is not None:
            self.orphans += len(event.block_hashes)
            return []
        state = parent.state if parent else HashState(seed_of(event.lora, event.cache_salt), 0)
        tokens = np.asarray(event.token_ids, dtype=np.uint32)
        hashes, values = extend(state, block_hashes(tokens, event.block_size))
        before = parent.sequence_hash if parent else None
        previous = before
        replaced: list[int] = []
        for index, (opaque, ours) in enumerate(zip(event.block_hashes, hashes.tolist(), strict=False)):
            child = HashState(int(values[index]), state.blocks + index + 1)
            known = self._blocks.get((event.medium, opaque))
            if known is not None and known.sequence_hash != ours:
                replaced += self._drop(event.medium, opaque)
                known = None
            if known is None:
                self._copies[event.medium, ours] += 1
            self._blocks[event.medium, opaque] = _Block(ours, previous, child)
            previous = ours
        stored = HashesStored(hashes.astype("<u8").tobytes(), before, event.medium)
        return [_removal(replaced, event.medium), stored] if replaced else [stored]

    def removed(self, event: BlockRemoved) -> HashesRemoved | None:
        """Drop blocks; None when none of them was known."""
        gone = [ours for opaque in event.block_hashes for ours in self._drop(event.medium, opaque)]
        return _removal(gone, event.medium) if gone else None

    def clear(self) -> None:
        """Everything is gone."""
        self._blocks.clear()
        self._copies.clear()

    def content(self) -> list[HashesStored]:
        """All blocks, as runs of parents and children; parents come before their children."""
        tails: dict[tuple[str, int | None], tuple[int | None, list[int]]] = {}
        runs: list[tuple[str, int | None, list[int]]] = []
        for (medium, _), block in sorted(self._blocks.items(), key=lambda item: item[1].state.blocks):
            first_parent, run = tails.pop((medium, block.parent), (block.parent, []))
            if not run:
                runs.append((medium, first_parent, run))
            run.append(block.sequence_hash)
            tails[medium, block.sequence_hash] = (first_parent, run)
        return [HashesStored(np.asarray(run, dtype="<u8").tobytes(), parent, medium) for medium, parent, run in runs]

    def _drop(self, medium: str, opaque: int | bytes) -> list[int]:
        """Forget a block; our hash of it if its content is gone with it."""
        block = self._blocks.pop((medium, opaque), None)
        if block is None:
            return []
        key = (medium, block.sequence_hash)
        self._copies[key] -= 1
        # An engine may hold one content twice, under two hashes of its own: the last copy counts.
        if self._copies[key]:
            return []
        del self._copies[key]
        return [block.sequence_hash]

    def _parent(self, event: BlockStored) -> _Block | None:
        if event.parent_hash is None:
            return None
        for medium in (event.medium, "device", "host", "disk"):
            block = self._blocks.get((medium, event.parent_hash))
            if block is not None:
                return block
        return None


def _removal(hashes: Sequence[int], medium: str) -> HashesRemoved:
    return HashesRemoved(np.asarray(hashes, dtype="<u8").tobytes(), medium)
