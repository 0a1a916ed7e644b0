"""One thing that is wrong with a graph: where, what, which rule, and how to put it right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

__all__ = ["Violation", "join_path"]

_SHOWN_CHARACTERS = 80


class Violation(NamedTuple):
    """`path` is written as in ``spec.services.Frontend.envs[0].name``."""

    path: str
    value: Any
    rule: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"

    @property
    def shown_value(self) -> str:
        """The value in at most a line."""
        shown = repr(self.value)
        return shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "..."

    def __str__(self) -> str:
        got = "" if self.value is None else f" (got {self.shown_value})"
        return f"{self.path}: {self.rule}{got}" + (f"; {self.hint}" if self.hint else "")


def join_path(parts: Sequence[str | int], base: str = "") -> str:
    """Write keys and list indexes as one path below `base`."""
    path = base
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path
