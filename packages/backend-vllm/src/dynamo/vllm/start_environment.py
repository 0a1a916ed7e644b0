"""Environment variables of one start of vLLM, which are gone again once it has started.

vLLM and the libraries below it read their settings there, when they are imported and when they start processes, which
inherit all of it. What stayed would be the next engine's: its sockets would be looked for where this one's were.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType

from typing_extensions import Self

__all__ = ["StartEnvironment"]


class StartEnvironment:
    """A context manager: what is put in within it is as it was before when it ends."""

    def __init__(self) -> None:
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before.clear()

    def put(self, variables: Mapping[str, str]) -> None:
        """Set them, whatever the user set."""
        for name, value in variables.items():
            self._before.setdefault(name, os.environ.get(name))
            os.environ[name] = value

    def add(self, variables: Mapping[str, str]) -> None:
        """Set those that the user has not set."""
        self.put({name: value for name, value in variables.items() if name not in os.environ})
