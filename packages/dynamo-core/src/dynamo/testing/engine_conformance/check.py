"""What a check is, and how it says that the contract is kept, broken or of no concern."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from dynamo.testing.engine_conformance.driver import EngineDriver

__all__ = ["Capability", "Check", "CheckFailed", "CheckSkipped", "Checks", "expect", "fail", "skip"]

#: Names of `EngineCapabilities` fields that a check can need.
Capability = Literal["kv_events", "load", "lora", "embeddings", "guided", "logprobs", "resume"]
#: The body of a check; a text that it returns is shown beside "ok".
CheckFunction = Callable[[EngineDriver], Awaitable["str | None"]]


class CheckFailed(Exception):
    """The engine broke the rule: what was seen, and how to put it right."""

    def __init__(self, seen: str, fix: str) -> None:
        super().__init__(seen)
        self.seen = seen
        self.fix = fix


class CheckSkipped(Exception):
    """The rule cannot be tried on this engine; the message says why."""


@dataclass(frozen=True)
class Check:
    """One rule of the contract and how to try it."""

    id: str
    contract: str
    function: CheckFunction
    needs: tuple[Capability, ...] = ()
    """Without these the check is skipped."""
    after: tuple[str, ...] = ()
    """Checks that this one builds on: when one of them failed, this one could only repeat the failure."""
    spoils: bool = False
    """The engine cannot be used afterwards; the next check gets a fresh one."""


class Checks(list[Check]):
    """The checks of one module, in the order in which they run."""

    def add(
        self,
        check_id: str,
        *,
        needs: Sequence[Capability] = (),
        after: Sequence[str] = (),
        spoils: bool = False,
    ) -> Callable[[CheckFunction], CheckFunction]:
        """Decorate the function of a check; its docstring is the rule."""

        def register(function: CheckFunction) -> CheckFunction:
            contract = " ".join((function.__doc__ or "").split())
            self.append(Check(check_id, contract, function, tuple(needs), tuple(after), spoils))
            return function

        return register


def fail(seen: str, fix: str) -> NoReturn:
    """The rule is broken."""
    raise CheckFailed(seen, fix)


def expect(kept: bool, seen: str, fix: str) -> None:
    """The rule is broken unless `kept`."""
    if not kept:
        fail(seen, fix)


def skip(reason: str) -> NoReturn:
    """The rule cannot be tried."""
    raise CheckSkipped(reason)
