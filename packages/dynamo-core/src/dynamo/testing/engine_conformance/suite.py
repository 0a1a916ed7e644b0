"""The order of the suite, and the two ways to run it: from a test, and from an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dynamo.errors import ConfigError
from dynamo.protocols.engine import EngineFactory, EngineOptions
from dynamo.testing.engine_conformance import (
    cancellation,
    features,
    lifecycle,
    limits,
    prefix_cache,
    refusals,
    sampling,
    streams,
)
from dynamo.testing.engine_conformance.check import Check
from dynamo.testing.engine_conformance.driver import SuiteSettings
from dynamo.testing.engine_conformance.runner import run_checks
from dynamo.testing.report import CheckResult, Report

__all__ = ["engine_checks", "engine_report", "run_engine_conformance"]


def engine_checks(only: Sequence[str] = ()) -> list[Check]:
    """The checks in the order in which they run; `only` keeps some, by id or family (``events``).

    Raises:
        ConfigError: a name in `only` fits no check.
    """
    every = _ordered(
        [
            *streams.checks,
            *limits.checks,
            *sampling.checks,
            *refusals.checks,
            *lifecycle.load_checks,
            *cancellation.checks,
            *prefix_cache.checks,
            *features.checks,
            *lifecycle.drain_checks,
        ]
    )
    for name in only:
        if not any(_named(check, name) for check in every):
            families = ", ".join(sorted({check.id.partition(".")[0] for check in every}))
            raise ConfigError(f"there is no check {name!r}", hint=f"families: {families}; --list shows all")
    return [check for check in every if not only or any(_named(check, name) for name in only)]


async def engine_report(
    factory: EngineFactory,
    options: EngineOptions | None = None,
    *,
    only: Sequence[str] = (),
    settings: SuiteSettings | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
    subject: str = "",
) -> Report:
    """Run the suite on engines that `factory` makes of `options`; `on_result` sees each result as it comes.

    Raises:
        ConfigError: a name in `only` fits no check.
    """
    return await run_checks(
        factory,
        options or EngineOptions(),
        engine_checks(only),
        settings=settings or SuiteSettings(),
        on_result=on_result,
        subject=subject or getattr(factory, "__name__", type(factory).__name__),
    )


def run_engine_conformance(
    factory: EngineFactory,
    options: EngineOptions | None = None,
    *,
    only: Sequence[str] = (),
    settings: SuiteSettings | None = None,
) -> Report:
    """The suite as one call, for tests of a backend: ``run_engine_conformance(MyEngine).raise_for_failures()``.

    Raises:
        ConfigError: a name in `only` fits no check.
    """
    return asyncio.run(engine_report(factory, options, only=only, settings=settings))


def _named(check: Check, name: str) -> bool:
    return check.id == name or check.id.startswith(f"{name}.")


def _ordered(checks: Sequence[Check]) -> list[Check]:
    """Each check behind those that it builds on, otherwise as listed."""
    by_id = {check.id: check for check in checks}
    ordered: dict[str, Check] = {}

    def place(check: Check) -> None:
        for name in check.after:
            if name not in ordered:
                place(by_id[name])
        ordered.setdefault(check.id, check)

    for check in checks:
        place(check)
    return list(ordered.values())
