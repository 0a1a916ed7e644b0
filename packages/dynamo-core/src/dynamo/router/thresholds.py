"""From when on a worker is busy: per model, from settings, changed while frontends run (``/busy_threshold``).

`CandidateTable` leaves busy workers out; when all are, the request is refused.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from dynamo.protocols.load import EngineLoad

__all__ = ["BusyThresholds", "parse_thresholds"]

_FORM = "write it as MODEL=BLOCKS:TOKENS, as in llama=0.85:10000; either may be left out"


class BusyThresholds(msgspec.Struct, frozen=True):
    """A worker beyond one of them is busy; None never."""

    active_decode_blocks_threshold: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    """Part of its KV blocks that it uses."""
    active_prefill_tokens_threshold: Annotated[int, msgspec.Meta(ge=1, le=2**53)] | None = None
    """Prompt tokens that it was given and has not computed."""

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self.active_decode_blocks_threshold is not None or self.active_prefill_tokens_threshold is not None

    def exceeded(self, load: EngineLoad | None, booked_prefill_tokens: int = 0) -> bool:
        """Whether a worker that says `load` of itself, and that was sent so many tokens, is busy.

        The report is up to a quarter of a second old, hence the bookings; of KV blocks only the worker knows.
        """
        prefill, blocks = self.active_prefill_tokens_threshold, self.active_decode_blocks_threshold
        reported = load.active_prefill_tokens if load is not None else 0
        if prefill is not None and max(reported, booked_prefill_tokens) > prefill:
            return True
        return blocks is not None and load is not None and load.used_kv_blocks > blocks * load.total_kv_blocks > 0


def parse_thresholds(text: str) -> tuple[str, BusyThresholds]:
    """A model and its thresholds, from ``MODEL=BLOCKS:TOKENS``.

    Raises:
        ValueError: it is not of that form, or a number is out of range.
    """
    model, equals, numbers = text.rpartition("=")
    blocks, colon, tokens = numbers.partition(":")
    if not (equals and model and colon):
        raise ValueError(f"{text!r}: {_FORM}")
    try:
        found = {
            "active_decode_blocks_threshold": float(blocks) if blocks else None,
            "active_prefill_tokens_threshold": int(tokens) if tokens else None,
        }
        return model, msgspec.convert(found, BusyThresholds)
    except (ValueError, msgspec.ValidationError) as error:
        raise ValueError(f"{text!r}: {error}; {_FORM}") from error
