"""KV events as vLLM and SGLang publish them over ZeroMQ, decoded; `dynamo.runtime.kv_event_stream` calls it.

A payload is the msgpack array ``[timestamp, events, data-parallel rank]``. An event is a map with a ``type`` (vLLM
0.32, SGLang since 0.5.22) or an array that begins with it (before); fields come in one order, and later versions only
append. The bytes may be anything: what cannot be read is dropped and counted, never raised.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Annotated, Any, TypeAlias

import msgspec

__all__ = ["Cleared", "Drops", "Removed", "Stored", "WireBatch", "WireEvent", "decode_batch"]

logger = logging.getLogger(__name__)

# No text: msgspec on Python 3.10 does not look into aliases within aliases.
_TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_Hashes: TypeAlias = list[int | bytes]
_ExtraKeys: TypeAlias = list[list[Any] | None] | None


class Stored(msgspec.Struct, tag="BlockStored", tag_field="type", gc=False):
    """Full blocks entered the cache."""

    block_hashes: _Hashes
    parent_block_hash: int | bytes | None
    token_ids: list[_TokenId]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: _ExtraKeys = None
    """Per block: LoRA name, (multimodal id, offset) pairs, cache salt, digests of prompt embeddings."""
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    cache_salt: str | None = None
    """Of engines that name it by itself, not among the extra keys."""


class Removed(msgspec.Struct, tag="BlockRemoved", tag_field="type", gc=False):
    """Blocks left the cache."""

    block_hashes: _Hashes
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None


class Cleared(msgspec.Struct, tag="AllBlocksCleared", tag_field="type", gc=False):
    """The cache was emptied."""


class _StoredArray(Stored, array_like=True, tag="BlockStored", tag_field="type"):
    pass


class _RemovedArray(Removed, array_like=True, tag="BlockRemoved", tag_field="type"):
    pass


class _ClearedArray(Cleared, array_like=True, tag="AllBlocksCleared", tag_field="type"):
    pass


WireEvent: TypeAlias = "Stored | Removed | Cleared"


class _Frame(msgspec.Struct, array_like=True):
    timestamp: float
    events: list[msgspec.Raw]


class WireBatch(msgspec.Struct, frozen=True):
    """The events of one engine step that could be read."""

    timestamp: float
    """Seconds since 1970, by the engine's clock."""
    events: list[Stored | Removed | Cleared]


_frame = msgspec.msgpack.Decoder(_Frame)
_map_event = msgspec.msgpack.Decoder(Stored | Removed | Cleared)
_array_event = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray)


#: msgspec's errors are ValueErrors, and so is that of text that is not UTF-8; RecursionError: nested without end.
_UNREADABLE = (ValueError, RecursionError)


class Drops:
    """Counts what was left out, by reason; says so in the log at the first, tenth, hundredth ... time."""

    def __init__(self, source: str = "") -> None:
        """`source` names the engine in the log, where there are several."""
        self._source = f" of {source}" if source else ""
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, detail: object = "") -> None:
        """One more was dropped for `reason`."""
        self.counts[reason] += 1
        count = self.counts[reason]
        if str(count).strip("0") == "1":
            logger.warning(
                "KV events%s dropped so far because of %s: %d (%s)", self._source, reason, count, detail or "no details"
            )


def decode_batch(payload: bytes, drops: Drops) -> WireBatch | None:
    """The events of one message; None when the message as a whole cannot be read."""
    try:
        frame = _frame.decode(payload)
    except _UNREADABLE as error:
        drops.add("an unreadable message", error)
        return None
    events = [event for raw in frame.events if (event := _decode_event(raw, drops)) is not None]
    return WireBatch(frame.timestamp, events)


def _decode_event(raw: msgspec.Raw, drops: Drops) -> Stored | Removed | Cleared | None:
    first = bytes(memoryview(raw)[:1])[0]
    # msgpack's maps: fixmap, map 16, map 32
    is_map = 0x80 <= first <= 0x8F or first in (0xDE, 0xDF)
    try:
        event: Stored | Removed | Cleared = (_map_event if is_map else _array_event).decode(raw)
    except _UNREADABLE as error:
        drops.add("an unreadable event", error)
        return None
    if isinstance(event, Stored) and not _consistent(event):
        drops.add("a BlockStored whose token ids do not fill its blocks")
        return None
    return event


def _consistent(event: Stored) -> bool:
    blocks = len(event.block_hashes)
    if event.extra_keys is not None and len(event.extra_keys) != blocks:
        return False
    return event.block_size > 0 and len(event.token_ids) == blocks * event.block_size
