"""Small pieces that the generated pages share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["GENERATED", "docstring", "table"]

#: Second line of every generated page.
GENERATED = "<!-- Generated from the code by `nox -s docs -- --write`; edit the docstrings instead. -->"
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_LITERAL = re.compile(r"``([^`]+)``")
_SECTION = re.compile(r"^(Raises|Returns|Args):\n((?: {4}.*\n?)+)", re.MULTILINE)


def docstring(documented: Any) -> str:
    """The docstring as Markdown: no roles, single backticks, `Raises:` as a list."""
    text = inspect.getdoc(documented) or ""
    text = _LITERAL.sub(r"`\1`", _ROLE.sub(lambda match: f"`{match[1]}`", text))
    return _SECTION.sub(lambda match: f"{match[1]}:\n\n{_list(match[2])}", text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are put on one line and `|` is escaped."""
    escaped = ([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows)
    lines = ["| " + " | ".join(row) + " |" for row in (header, *escaped)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def _list(block: str) -> str:
    """Indented ``Name: text`` entries as list items; deeper lines go on with the entry above."""
    return "\n".join(
        f"  {line.strip()}" if line.startswith(" " * 5) else f"- {line.strip()}" for line in block.splitlines()
    )
