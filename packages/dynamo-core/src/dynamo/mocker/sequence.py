"""One request as the simulated scheduler sees it: counts of tokens and blocks, and the names of its blocks."""

from __future__ import annotations

import enum
from collections.abc import Sequence as Items
from typing import Any

__all__ = ["Sequence", "SequenceState"]


class SequenceState(enum.Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    TRANSFERRING = "transferring"
    """Admitted; its KV is on the way from a prefill worker."""
    PREFILLING = "prefilling"
    DECODING = "decoding"
    ENDED = "ended"


class Sequence:
    """Made by whoever drives the core, changed by the core alone.

    Args:
        key: anything; the core does not look at it.
        prompt_tokens: at least 1.
        output_tokens: how many tokens to generate, at least 1.
        names: names of the leading full blocks of prompt and output, as far as they may be shared; blocks beyond them
            are never cached.
        priority: lower runs sooner.
        transferred: the prompt's KV comes from a prefill worker.
    """

    __slots__ = (
        "blocks",
        "cached_tokens",
        "computed",
        "generated",
        "key",
        "known",
        "names",
        "order",
        "output_tokens",
        "preemptions",
        "priority",
        "prompt_tokens",
        "ready_time",
        "shared",
        "state",
        "transferred",
    )

    def __init__(
        self,
        key: Any,
        prompt_tokens: int,
        output_tokens: int,
        names: Items[int] = (),
        *,
        priority: int = 0,
        transferred: bool = False,
    ) -> None:
        self.key = key
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.names = names
        self.priority = priority
        self.transferred = transferred
        self.state = SequenceState.WAITING
        self.order = (priority, 0)
        """Runs before those of a higher order; the last one is preempted first."""
        self.known = prompt_tokens
        """Tokens of prompt and output so far."""
        self.computed = 0
        """Tokens whose KV is there. One less than `known` while decoding."""
        self.generated = 0
        self.cached_tokens = 0
        """Prompt tokens that the first admission found in the prefix cache."""
        self.preemptions = 0
        self.blocks = 0
        """Blocks held, shared ones included."""
        self.shared = 0
        """Leading blocks that are held under their name."""
        self.ready_time = 0.0
        """When the KV has arrived, on the clock of the core."""

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one is drawn."""
        return self.known - self.computed

    @property
    def running(self) -> bool:
        """Whether it holds blocks."""
        return self.state not in (SequenceState.WAITING, SequenceState.ENDED)
