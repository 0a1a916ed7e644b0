"""Engines' KV events in the project's words: which group counts, tiers, LoRA, salt; one translator per rank.

`dynamo.runtime.kv_event_stream` has one for each rank that it follows.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EngineKvEvent
from dynamo.protocols.kv_wire import Drops, Removed, Stored, WireEvent

__all__ = ["Translator"]

_TIERS = {
    None: "device",
    "GPU": "device",
    "CPU": "host",
    "CPU_PINNED": "host",
    "CPU_TIER1": "host",
    "CPU_TIER2": "host",
    "DISK": "disk",
    "STORAGE": "disk",
}
#: Kinds of KV cache group whose blocks hold the whole prefix; None: older versions do not say.
_FULL_ATTENTION = {None, "full_attention", "mla_attention", "sink_full_attention"}


class Translator:
    """Remembers which KV cache group is the full-attention one: only it counts (DESIGN 4.2)."""

    def __init__(self, drops: Drops) -> None:
        self._drops = drops
        self._known = False
        self._group: int | None = None

    def translate(self, events: Sequence[WireEvent]) -> list[EngineKvEvent]:
        """The events that matter to a router, in order."""
        return [ours for event in events if (ours := self._event(event)) is not None]

    def _event(self, event: WireEvent) -> EngineKvEvent | None:
        if isinstance(event, Stored):
            return self._stored(event)
        if isinstance(event, Removed):
            return self._removed(event)
        return AllBlocksCleared()

    def _stored(self, event: Stored) -> BlockStored | None:
        tier = self._tier(event)
        if tier is None or event.kv_cache_spec_kind not in _FULL_ATTENTION:
            return None
        if not self._known:
            self._known, self._group = True, event.group_idx
        if event.group_idx != self._group:
            return None
        blocks, salt = self._keys(event)
        if not blocks:
            return None
        return BlockStored(
            block_hashes=event.block_hashes[:blocks],
            token_ids=event.token_ids[: blocks * event.block_size],
            block_size=event.block_size,
            parent_hash=event.parent_block_hash,
            lora=_lora(event),
            cache_salt=event.cache_salt if event.cache_salt is not None else salt,
            medium=tier,
            group=event.group_idx or 0,
        )

    def _removed(self, event: Removed) -> BlockRemoved | None:
        tier = self._tier(event)
        if tier is None or not self._known or event.group_idx not in (self._group, None):
            return None
        return BlockRemoved(block_hashes=event.block_hashes, medium=tier, group=event.group_idx or 0)

    def _tier(self, event: Stored | Removed) -> str | None:
        if event.locality == "REMOTE":
            return None
        tier = _TIERS.get(event.medium)
        if tier is None:
            self._drops.add("an unknown medium", event.medium)
        return tier

    def _keys(self, event: Stored) -> tuple[int, str | None]:
        """How many blocks depend on nothing but tokens, LoRA and salt, and the salt.

        A router cannot tell images apart, and blocks that hold them look alike in token ids: they and what follows are
        left out.
        """
        salt = None
        for index, keys in enumerate(event.extra_keys or ()):
            rest = list(keys or ())
            if rest and event.lora_name is not None and rest[0] == event.lora_name:
                del rest[0]
            starts = index == 0 and event.parent_block_hash is None
            if starts and len(rest) == 1 and isinstance(rest[0], str):
                salt = rest[0]
            elif rest:
                self._drops.add("inputs beyond tokens, LoRA and salt")
                return index, salt
        return len(event.block_hashes), salt


def _lora(event: Stored) -> str | None:
    """The adapter's name; its number where an older engine tells only that, so that its blocks stay apart."""
    return event.lora_name if event.lora_name is not None or event.lora_id is None else str(event.lora_id)
