"""How long a model's chat template takes for long texts: learned, so that quick ones need no thread.

The way to a thread and back is system calls and switches, for what may be one copy of the text. Each served model has
one `RenderTime`, which `dynamo.frontend.prompts` asks and tells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["RenderTime", "only_texts"]

T = TypeVar("T")

#: A slow text counts at once, and so much of it at the next one.
_KEPT = 0.9


class RenderTime:
    """CPU seconds per byte of the bodies that were rendered, rather too many than too few."""

    __slots__ = ("_per_byte",)

    def __init__(self) -> None:
        self._per_byte = math.inf

    def expected_seconds(self, body_bytes: int) -> float:
        """For a request of `body_bytes`; infinite before the first one."""
        return self._per_byte * body_bytes

    def measured(self, work: Callable[[], T], body_bytes: int) -> T:
        """What `work` returns, which renders a request of `body_bytes` on this thread."""
        start = time.thread_time()
        try:
            return work()
        finally:
            taken = (time.thread_time() - start) / body_bytes
            kept = 0.0 if math.isinf(self._per_byte) else _KEPT * self._per_byte
            self._per_byte = max(taken, kept)


def only_texts(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether `messages` hold plain texts: what nests (parts, calls) takes a template longer than its size says."""
    return all(value is None or isinstance(value, str) for message in messages for value in message.values())
