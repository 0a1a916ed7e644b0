"""A row: one measured number beside its reference, with the bar that it has to reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Options", "Row"]


@dataclass(frozen=True)
class Options:
    """What the command line asks of a benchmark."""

    quick: bool = False
    only: str = ""
    """Only rows whose names hold this text are shown; a benchmark may spare itself the others."""

    def wants(self, name: str) -> bool:
        """Whether a row of this name is asked for."""
        return self.only in name


@dataclass(frozen=True)
class Row:
    """One result. `value` is a median; `low` and `high` are the least and greatest run.

    `reference_value` is in the same unit and was measured in the same run; `bar` is the least acceptable `ratio`.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    better: Literal["higher", "lower"] = "higher"
    reference: str = ""
    reference_value: float | None = None
    bar: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better than the reference: above 1 is better, whichever direction is."""
        if self.reference_value is None or not self.reference_value or not self.value:
            return None
        return self.value / self.reference_value if self.better == "higher" else self.reference_value / self.value

    @property
    def holds(self) -> bool | None:
        """Whether the bar is reached; None without a bar, False when there is one and nothing to compare with."""
        if self.bar is None:
            return None
        return self.ratio is not None and self.ratio >= self.bar

    def to_json(self, command: str, machine: str) -> dict[str, Any]:
        """The row as the JSON files hold it."""
        return {
            "name": self.name,
            "value": self.value,
            "min": self.low,
            "max": self.high,
            "unit": self.unit,
            "better": self.better,
            "reference": self.reference,
            "reference_value": self.reference_value,
            "ratio": self.ratio,
            "bar": self.bar,
            "holds": self.holds,
            "command": command,
            "machine": machine,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        """The inverse of :meth:`to_json`; ratio and holds are computed again."""
        return cls(
            name=data["name"],
            value=data["value"],
            unit=data["unit"],
            low=data["min"],
            high=data["max"],
            better=data["better"],
            reference=data["reference"],
            reference_value=data["reference_value"],
            bar=data["bar"],
        )
