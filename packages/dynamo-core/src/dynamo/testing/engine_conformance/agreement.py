"""When two greedy streams count as equal (DESIGN 4.1): floating point may turn a close call, and nothing else.

Where the likeliest two tokens are nearer than `CLOSE_CALL`, another batch, prefix hit or chunk may make an engine
choose either, and what follows then says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo.testing.engine_conformance.driver import Generation

__all__ = ["CLOSE_CALL", "disagreement"]

#: Difference of natural-log probabilities, which is the difference of the logits.
CLOSE_CALL = 1e-3


def disagreement(expected: Generation, ids: Sequence[int], *, exact: bool = False) -> str | None:
    """Where `ids` differ from those of `expected`, in words; None when they agree.

    They are compared up to the first close call, or to the end when they must be equal (`exact`) or the engine gives
    no logprobs.
    """
    wanted = expected.ids
    certain = len(wanted) if exact else _certain_tokens(expected)
    for position in range(certain):
        got = ids[position] if position < len(ids) else "the end"
        if got != wanted[position]:
            return f"token {position} is {got} in place of {wanted[position]}"
    if certain == len(wanted) < len(ids):
        return f"token {certain} is {ids[certain]} in place of the end"
    return None


def _certain_tokens(generation: Generation) -> int:
    """Tokens before the first close call; all of them when the engine gives no logprobs."""
    for position, entry in enumerate(generation.logprobs):
        if len(entry.top) > 1 and abs(entry.top[0][1] - entry.top[1][1]) < CLOSE_CALL:
            return position
    return len(generation.ids)
