"""What one rendering of a chat template may cost. The sandbox charges it; nothing else does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

__all__ = ["Budget", "TemplateLimits", "current_budget", "spending"]

#: Copying this many characters, or visiting this many values, takes about as long as one call.
_CHARACTERS_PER_STEP = 4096
_VALUES_PER_STEP = 4


@dataclass(frozen=True)
class TemplateLimits:
    """Bounds of one rendering."""

    steps: int = 250_000
    """Loop iterations, calls and filters, and the data they copy. A thousand messages take 4,000 to 40,000."""
    text_characters: int = 16 * 1024 * 1024
    """Of the output, and of every string, list or number made on the way."""
    seconds: float = 2.0
    """A last resort, for work that steps count too low: steps end a template at the same place each time."""


class Budget:
    """Counts down one rendering. Raises `jinja2.exceptions.SecurityError` when it is spent."""

    __slots__ = ("_clock", "_deadline", "_limits", "_steps")

    def __init__(self, limits: TemplateLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._steps = limits.steps
        self._clock = clock
        self._deadline = clock() + limits.seconds

    def charge(self, steps: int = 1) -> None:
        """Pay for work."""
        self._steps -= steps
        if self._steps < 0:
            raise SecurityError(f"the template takes more than {self._limits.steps} steps")
        if self._steps & 15 < steps and self._clock() > self._deadline:
            raise SecurityError(f"the template takes longer than {self._limits.seconds} s")

    def size(self, characters: int) -> None:
        """Pay for a value of so many characters or items, before it is made."""
        if characters > self._limits.text_characters:
            raise SecurityError(f"the template makes a value larger than {self._limits.text_characters} characters")
        if characters >= _CHARACTERS_PER_STEP:
            self.charge(characters // _CHARACTERS_PER_STEP)

    def collect(self, chunks: Iterable[str]) -> str:
        """Join `chunks`, as long as they stay within the limit."""
        parts, left = [], self._limits.text_characters
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            parts.append(chunk)
        self.size(self._limits.text_characters - left)
        return "".join(parts)

    def measure(self, value: object) -> int:
        """Pay for printing or comparing `value`; returns about how many characters it prints as.

        Shared parts count each time: a list put twice into a list forty times over prints 2**40 times. The walk ends
        with the budget, and so does that of a cycle.
        """
        stack, seen, characters = [value], 0, 0
        while stack:
            item = stack.pop()
            characters += len(item) if isinstance(item, str) else 1
            if isinstance(item, dict):
                stack.extend(item)
                stack.extend(item.values())
            elif isinstance(item, (list, tuple, set, frozenset)):
                stack.extend(item)
            elif isinstance(item, Namespace):
                raise SecurityError("a namespace cannot be printed or compared")
            seen += 1
            if seen % _VALUES_PER_STEP == 0:
                self.charge()
        self.size(characters)
        return characters


_current: ContextVar[Budget | None] = ContextVar("dynamo_template_budget", default=None)


def current_budget() -> Budget:
    """The budget of the rendering in progress, or a fresh one: compiling a template folds constants."""
    return _current.get() or Budget(TemplateLimits())


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Make `budget` the current one."""
    token = _current.set(budget)
    try:
        yield
    finally:
        _current.reset(token)
