"""What one engine rank has stored, by the engine's opaque block hashes and by ours.

`dynamo.worker.kv_publisher` keeps one per rank to publish from; `dynamo.frontend.select` one per rank of the engines
that it listens to itself. A worker translates every block that it computes here, beside its engine: blocks are entered
by dict operations over whole events, and the tokens of many events are hashed by one call. The dicts hold nothing but
numbers, so Python's garbage collector never goes through a million blocks, which took 0.1 s.
"""

from __future__ import annotations

import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from dynamo.protocols.hashing import HashState, Uint64Array, block_hashes, following_hashes, seed_of, state_at
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
_Opaque: TypeAlias = "int | bytes"

#: Batches that are kept for listeners that missed some; older ones cost a whole snapshot.
REPLAY_BATCHES = 1024


class RankMirror:
    """What one data-parallel rank has stored, by the engine's hashes and by ours."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.sequence = -1
        self.orphans = 0
        """Blocks that were dropped because their parent is unknown."""
        self._media: dict[str, _Medium] = {}
        self.recent: deque[KvEventBatch] = deque(maxlen=REPLAY_BATCHES)

    def __len__(self) -> int:
        return sum(len(medium.ours) for medium in self._media.values())

    def translate(self, events: Sequence[EngineKvEvent]) -> list[RouterKvEvent]:
        """Enter the events of engine steps, in order; what they mean in our hashes, without what tells nothing new."""
        blocks = _block_hashes([event for event in events if isinstance(event, BlockStored)])
        translated: list[RouterKvEvent] = []
        for event in events:
            if isinstance(event, BlockStored):
                translated += self._stored(event, next(blocks))
            elif isinstance(event, BlockRemoved):
                medium = self._media.get(event.medium)
                gone = medium.drop(event.block_hashes) if medium is not None else []
                translated += [_removal(gone, event.medium)] if gone else []
            else:
                self._media.clear()
                translated.append(event)
        return translated

    def content(self) -> list[HashesStored]:
        """All blocks, as runs of parents and children; parents come before their children."""
        tails: dict[tuple[str, int | None], tuple[int | None, list[int]]] = {}
        runs: list[tuple[str, int | None, list[int]]] = []
        media = self._media
        blocks = [(depth, name, block) for name in media for block, depth in media[name].depths.items()]
        for _, name, sequence_hash in sorted(blocks):
            parent = media[name].parents[sequence_hash]
            first_parent, run = tails.pop((name, parent), (parent, []))
            if not run:
                runs.append((name, first_parent, run))
            run.append(sequence_hash)
            tails[name, sequence_hash] = (first_parent, run)
        return [HashesStored(_packed(run), parent, name) for name, parent, run in runs]

    def _stored(self, event: BlockStored, blocks: Uint64Array) -> list[RouterKvEvent]:
        """Enter blocks; nothing when their parent is unknown.

        An engine that stores other content under a hash of before has dropped what was there.
        """
        before: int | None = None
        if event.parent_hash is None:
            state = HashState(seed_of(event.lora, event.cache_salt), 0)
        else:
            found = self._find(event.parent_hash, event.medium)
            if found is None:
                self.orphans += len(event.block_hashes)
                return []
            before, depth = found
            state = state_at(before, depth)
        hashes = following_hashes(state, blocks)
        replaced = self._medium(event.medium).enter(event.block_hashes, hashes, before, state.blocks)
        stored = HashesStored(_packed(hashes), before, event.medium)
        return [_removal(replaced, event.medium), stored] if replaced else [stored]

    def _find(self, opaque: _Opaque, medium: str) -> tuple[int, int] | None:
        """Our hash of a block, and the number of blocks up to it."""
        for name in (medium, "device", "host", "disk"):
            held = self._media.get(name)
            if held is not None and (ours := held.ours.get(opaque)) is not None:
                return ours, held.depths[ours]
        return None

    def _medium(self, name: str) -> _Medium:
        medium = self._media.get(name)
        if medium is None:
            medium = self._media[name] = _Medium()
        return medium


class _Medium:
    """The blocks in the device's memory, the host's or on disk."""

    __slots__ = ("_copies", "depths", "ours", "parents")

    def __init__(self) -> None:
        self.ours: dict[_Opaque, int] = {}
        """Our hash by the engine's."""
        self.parents: dict[int, int | None] = {}
        """By our hash, as all that follows: our hash of the block before."""
        self.depths: dict[int, int] = {}
        """The number of blocks up to it."""
        self._copies: dict[int, int] = {}
        """How often it is held. An engine may hold a block twice, under two hashes of its own: the last copy counts."""

    def enter(self, opaque: Sequence[_Opaque], hashes: Sequence[int], before: int | None, depth: int) -> list[int]:
        """Enter the blocks that follow `before`, number `depth` of its sequence; our hashes that are gone by it."""
        parents = [before, *hashes]
        names = dict(zip(opaque, hashes, strict=False))
        single = dict.fromkeys(hashes, 1)
        new = len(names) == len(single) == len(hashes)
        if new and self.ours.keys().isdisjoint(names) and self._copies.keys().isdisjoint(single):
            self.ours.update(names)
            self._copies.update(single)
            self.parents.update(zip(hashes, parents, strict=False))
            self.depths.update(zip(hashes, range(depth + 1, depth + len(parents)), strict=True))
            return []
        return self._enter_again(zip(opaque, hashes, parents, strict=False), depth)

    def drop(self, opaque: Iterable[_Opaque]) -> list[int]:
        """Forget blocks; our hashes of those whose content is gone with them."""
        gone = []
        for name in opaque:
            ours = self.ours.pop(name, None)
            if ours is None:
                continue
            left = self._copies[ours] - 1
            if left:
                self._copies[ours] = left
            else:
                del self._copies[ours], self.parents[ours], self.depths[ours]
                gone.append(ours)
        return gone

    def _enter_again(self, blocks: Iterable[tuple[_Opaque, int, int | None]], depth: int) -> list[int]:
        """Enter blocks some of which are there, by the engine's hash or by ours."""
        replaced: list[int] = []
        for number, (opaque, ours, parent) in enumerate(blocks, depth + 1):
            known = self.ours.get(opaque)
            if known is not None and known != ours:
                replaced += self.drop([opaque])
                known = None
            if known is None:
                self._copies[ours] = self._copies.get(ours, 0) + 1
            self.ours[opaque] = ours
            self.parents[ours] = parent
            self.depths[ours] = number
        return replaced


def _block_hashes(events: Sequence[BlockStored]) -> Iterator[Uint64Array]:
    """The hashes of each event's full blocks; one call for all of them, since they nearly always have one size."""
    if len({event.block_size for event in events}) > 1:
        for event in events:
            yield from _block_hashes([event])
        return
    token_ids = array("I")
    counts = []
    for event in events:
        count, rest = divmod(len(event.token_ids), event.block_size)
        # By an array of Python's: numpy takes three times as long to read a list.
        token_ids += array("I", event.token_ids[: count * event.block_size] if rest else event.token_ids)
        counts.append(count)
    if not counts:
        return
    hashes = block_hashes(np.frombuffer(token_ids, dtype=np.uint32), events[0].block_size)
    start = 0
    for count in counts:
        yield hashes[start : start + count]
        start += count


def _removal(hashes: Sequence[int], medium: str) -> HashesRemoved:
    return HashesRemoved(_packed(hashes), medium)


def _packed(hashes: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(hashes)}Q", *hashes)
