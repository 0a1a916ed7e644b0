"""Runs the suite: one engine for as many checks as possible, every wait with a deadline, every surprise reported."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from dynamo.errors import DynamoError
from dynamo.protocols.engine import EngineConfig, EngineFactory, EngineOptions
from dynamo.testing.engine_conformance.check import Check, CheckFailed, CheckSkipped
from dynamo.testing.engine_conformance.driver import EngineDriver, SuiteSettings
from dynamo.testing.report import CheckResult, Report, Status

__all__ = ["START_CHECK", "describe_exception", "run_checks"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Id under which a failing start() is reported; all checks build on it.
START_CHECK = "start"
_START_CONTRACT = (
    "start() loads the model and returns an EngineConfig, or raises a DynamoError that says what is wrong."
)
_GRACE_SECONDS = 10.0
_HANG_FIX = "every wait of an engine needs a deadline, and nothing may block the event loop"


class _Suite:
    """One run: the engine in use, made when a check first needs it and replaced when one spoiled it."""

    def __init__(self, factory: EngineFactory, options: EngineOptions, settings: SuiteSettings) -> None:
        self._factory = factory
        self._options = options
        self._settings = settings
        self._driver: EngineDriver | None = None

    async def run(self, check: Check) -> CheckResult:
        """Run one check and discard the engine if it cannot be trusted any more."""
        started = time.monotonic()
        status: Status = "failed"
        seen, fix = "", ""
        try:
            driver = await self.driver()
            _require(driver, check)
            limit = self._settings.check_timeout_seconds
            note: str | None = await _bounded(lambda: check.function(driver), limit, "the check did not end")
            seen = note or ""
            status = "ok"
        except CheckSkipped as skipped:
            status, seen = "skipped", str(skipped)
        except CheckFailed as failure:
            seen, fix = failure.seen, failure.fix
        except Exception as error:  # noqa: BLE001 - the engine's own code ran: whatever it raised is the finding
            seen, fix = describe_exception(error), "serve this request as the contract says"
        if check.spoils or status == "failed":
            await self.discard()
        return CheckResult(check.id, check.contract, status, seen, fix, round(time.monotonic() - started, 3))

    async def driver(self) -> EngineDriver:
        """The engine in use, started."""
        if self._driver is None:
            engine = self._factory(self._options)
            limit = self._settings.start_timeout_seconds
            try:
                config: object = await _bounded(engine.start, limit, "start() did not return")
            except Exception:
                await _clean(engine.cleanup)
                raise
            if not isinstance(config, EngineConfig):
                raise CheckFailed(f"start() returned {type(config).__name__}", "return an EngineConfig")
            self._driver = EngineDriver(engine, config, self._settings)
        return self._driver

    async def discard(self) -> None:
        """Clean up the engine in use."""
        driver, self._driver = self._driver, None
        if driver is not None:
            await _clean(driver.close)


async def run_checks(
    factory: EngineFactory,
    options: EngineOptions,
    checks: Sequence[Check],
    *,
    settings: SuiteSettings,
    on_result: Callable[[CheckResult], None] | None = None,
    subject: str = "",
) -> Report:
    """Run `checks` in order on engines that `factory` makes of `options`.

    A check is left out (``blocked``) when one that it builds on failed. `on_result` sees each result as it comes.
    """
    suite = _Suite(factory, options, settings)
    results: list[CheckResult] = []

    def report(result: CheckResult) -> None:
        results.append(result)
        if on_result is not None:
            on_result(result)

    start = await suite.run(Check(START_CHECK, _START_CONTRACT, _started))
    report(start)
    broken = {START_CHECK} if start.status == "failed" else set()
    for check in checks:
        causes = [name for name in (START_CHECK, *check.after) if name in broken]
        if causes:
            broken.add(check.id)
            report(CheckResult(check.id, check.contract, "blocked", f"{causes[0]} failed"))
            continue
        result = await suite.run(check)
        report(result)
        if result.status == "failed":
            broken.add(check.id)
    await suite.discard()
    return Report(subject or type(factory).__name__, results)


def describe_exception(error: BaseException) -> str:
    """What was raised and where, in one line."""
    if isinstance(error, DynamoError):
        return f"raised {type(error).__name__}: {error.message}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"raised {type(error).__name__}: {error}{where}"


def _require(driver: EngineDriver, check: Check) -> None:
    missing = [name for name in check.needs if not getattr(driver.config.capabilities, name)]
    if missing:
        raise CheckSkipped(f"the engine does not declare {' and '.join(missing)}")


async def _started(driver: EngineDriver) -> str:
    config = driver.config
    pool = f", {config.total_kv_blocks} blocks of {config.block_size_tokens}" if config.total_kv_blocks else ""
    return f"model {config.model}, context of {config.context_length_tokens} tokens{pool}"


async def _clean(cleanup: Callable[[], Awaitable[None]]) -> None:
    """cleanup() is checked by a check of its own, so trouble with it is only logged here."""
    try:
        await _bounded(cleanup, _GRACE_SECONDS, "cleanup() did not return")
    except Exception as error:  # noqa: BLE001 - the engine's own code
        logger.warning("cleanup of the engine under test: %s", error)


async def _bounded(function: Callable[[], Awaitable[T]], seconds: float, complaint: str) -> T:
    """Await `function()` for at most `seconds`; whatever swallows the cancellation is left behind, not waited for."""
    task = asyncio.ensure_future(_call(function))
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        task.cancel()
        await asyncio.wait([task], timeout=_GRACE_SECONDS)
        raise CheckFailed(f"{complaint} within {seconds:g} s", _HANG_FIX)
    return task.result()


async def _call(function: Callable[[], Awaitable[T]]) -> T:
    return await function()
