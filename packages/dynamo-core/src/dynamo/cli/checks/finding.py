"""What a check answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level", "fail", "ok", "warn"]

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    level: Level
    found: str
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, fix: str) -> Finding:
    """Works, but not everything or not well."""
    return Finding(check, "warn", found, fix)


def fail(check: str, found: str, fix: str) -> Finding:
    """Serving cannot work like this."""
    return Finding(check, "fail", found, fix)
