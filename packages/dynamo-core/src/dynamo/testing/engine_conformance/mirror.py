"""A brute-force model of an engine's prefix cache, built from nothing but its KV events.

It is what a router believes. The checks compare it with what the engine does: every block that the engine reuses must
be in here, and what is in here must be in the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EngineKvEvents

__all__ = ["KvMirror"]

_PROBLEM_LIMIT = 20
_Key = tuple[int, str, "int | bytes"]


@dataclass(frozen=True)
class _Block:
    tokens: tuple[int, ...]
    parent: int | bytes | None
    lora: str | None
    salt: str | None


@dataclass
class KvMirror:
    """Blocks by (data-parallel rank, medium, the engine's hash)."""

    block_size: int
    problems: list[str] = field(default_factory=list)
    """Rules that events broke, in words; the first few."""
    removals: int = 0
    received: int = 0
    """Batches."""
    _blocks: dict[_Key, _Block] = field(default_factory=dict)

    def apply(self, batch: EngineKvEvents) -> None:
        """Take the events of one engine step."""
        self.received += 1
        for event in batch.events:
            if isinstance(event, BlockStored):
                if event.group == 0:
                    self._store(batch.dp_rank, event)
            elif isinstance(event, BlockRemoved):
                if event.group == 0:
                    self._remove(batch.dp_rank, event)
            elif isinstance(event, AllBlocksCleared):
                self._blocks = {key: block for key, block in self._blocks.items() if key[0] != batch.dp_rank}

    def count(self, medium: str = "device") -> int:
        """Blocks of all ranks in `medium`."""
        return sum(key[1] == medium for key in self._blocks)

    def prefix_blocks(self, tokens: Sequence[int], *, salt: str | None = None, lora: str | None = None) -> int:
        """How many leading blocks of `tokens` are here, on the rank that has most of them."""
        return max(
            (self._prefix_of_rank(rank, tokens, salt, lora) for rank in {key[0] for key in self._blocks}), default=0
        )

    def chains(self) -> Iterable[tuple[list[int], str | None, str | None]]:
        """Token ids, salt and LoRA of every sequence of blocks up to one without children; broken ones are left out."""
        parents = {(rank, medium, block.parent) for (rank, medium, _), block in self._blocks.items()}
        for key, block in self._blocks.items():
            if key not in parents:
                tokens = self._unroll(key)
                if tokens is not None:
                    yield tokens, block.salt, block.lora

    def _unroll(self, key: _Key) -> list[int] | None:
        parts: list[tuple[int, ...]] = []
        rank, medium, block_hash = key
        parent: int | bytes | None = block_hash
        while parent is not None:
            block = self._blocks.get((rank, medium, parent))
            if block is None or len(parts) > len(self._blocks):
                return None
            parts.append(block.tokens)
            parent = block.parent
        return [token for part in reversed(parts) for token in part]

    def _prefix_of_rank(self, rank: int, tokens: Sequence[int], salt: str | None, lora: str | None) -> int:
        children = {
            (block.parent, block.tokens): key[2]
            for key, block in self._blocks.items()
            if key[0] == rank and block.salt == salt and block.lora == lora
        }
        parent: int | bytes | None = None
        for number in range(len(tokens) // self.block_size):
            part = tuple(tokens[number * self.block_size : (number + 1) * self.block_size])
            if (parent, part) not in children:
                return number
            parent = children[parent, part]
        return len(tokens) // self.block_size

    def _store(self, rank: int, event: BlockStored) -> None:
        size = event.block_size
        if size != self.block_size:
            self._problem(f"BlockStored says block_size {size}; start() said {self.block_size}")
        if len(event.token_ids) != len(event.block_hashes) * size:
            self._problem(
                f"BlockStored has {len(event.block_hashes)} hashes and {len(event.token_ids)} token ids; "
                f"{len(event.block_hashes) * size} ids are needed"
            )
            return
        parent = event.parent_hash
        if parent is not None and (rank, event.medium, parent) not in self._blocks:
            self._problem(f"BlockStored names parent {parent!r}, which is not in the cache")
        for number, block_hash in enumerate(event.block_hashes):
            key = (rank, event.medium, block_hash)
            if key in self._blocks:
                self._problem(f"BlockStored announces block {block_hash!r}, which was already stored")
            tokens = tuple(event.token_ids[number * size : (number + 1) * size])
            self._blocks[key] = _Block(tokens, parent, event.lora, event.cache_salt)
            parent = block_hash

    def _remove(self, rank: int, event: BlockRemoved) -> None:
        for block_hash in event.block_hashes:
            self.removals += 1
            if self._blocks.pop((rank, event.medium, block_hash), None) is None:
                self._problem(f"BlockRemoved names block {block_hash!r}, which was never stored or is already gone")

    def _problem(self, text: str) -> None:
        if len(self.problems) < _PROBLEM_LIMIT:
            self.problems.append(text)
