"""What a conformance suite found, as a text to act on and as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Literal

import msgspec

__all__ = ["CheckResult", "Report", "Status", "render_result"]

Status = Literal["ok", "failed", "skipped", "blocked"]
_WIDTH = 100


class CheckResult(msgspec.Struct, omit_defaults=True, frozen=True):
    """What became of one check."""

    id: str
    contract: str
    """The rule, in a sentence."""
    status: Status
    """``skipped``: does not apply to this engine; ``blocked``: a check that it builds on failed."""
    seen: str = ""
    """What the engine did (failed), or why the check did not run."""
    fix: str = ""
    seconds: float = 0.0


class Report(msgspec.Struct, frozen=True):
    """The results of one run, in the order of the suite."""

    subject: str
    """What was tested: the engine's name."""
    results: list[CheckResult]

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and nothing had to be left out because of a failure."""
        return not self.named("failed") and not self.named("blocked")

    def named(self, status: Status) -> list[str]:
        """Ids of the checks that ended so."""
        return [result.id for result in self.results if result.status == status]

    def raise_for_failures(self) -> None:
        """For test suites: fail with the text of every failed check.

        Raises:
            AssertionError: the engine breaks its contract.
        """
        if not self.passed:
            failures = [render_result(result) for result in self.results if result.status == "failed"]
            raise AssertionError("\n".join([f"engine {self.subject} breaks its contract:", *failures, self.summary()]))

    def summary(self) -> str:
        """One line of counts."""
        counts = Counter(result.status for result in self.results)
        words: dict[Status, str] = {
            "ok": "ok",
            "failed": "failed",
            "skipped": "skipped",
            "blocked": "not run because of a failure",
        }
        return ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])

    def to_json(self) -> bytes:
        """``{"subject", "passed", "results": [{"id", "contract", "status", "seen", "fix", "seconds"}]}``."""
        body = {"subject": self.subject, "passed": self.passed, "results": self.results}
        return msgspec.json.format(msgspec.json.encode(body), indent=2)


def render_result(result: CheckResult) -> str:
    """A line for what is well, a paragraph for what is not."""
    if result.status == "ok":
        return f"ok       {result.id}" + (f"  ({result.seen})" if result.seen else "")
    if result.status != "failed":
        return f"{result.status:<8} {result.id}: {result.seen}"
    lines = [f"FAILED   {result.id}"]
    # Paths and flags stay whole, so that they can be copied.
    wrapper = textwrap.TextWrapper(_WIDTH, break_long_words=False, break_on_hyphens=False)
    for label, text in (("contract", result.contract), ("seen", result.seen), ("fix", result.fix)):
        wrapper.initial_indent = f"         {label:<9} "
        wrapper.subsequent_indent = " " * len(wrapper.initial_indent)
        lines.append(wrapper.fill(text))
    return "\n".join(lines)
