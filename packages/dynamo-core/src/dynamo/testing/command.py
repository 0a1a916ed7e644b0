"""``dynamo conformance``: test a plugin against its contract."""

from __future__ import annotations

import asyncio
import sys

import click

from dynamo.plugins.loading import plugins
from dynamo.protocols.engine import EngineOptions
from dynamo.testing.api_contract.command import api
from dynamo.testing.engine_conformance import SuiteSettings, engine_checks, engine_report
from dynamo.testing.report import CheckResult, Report, render_result
from dynamo.testing.watchdog import watchdog

__all__ = ["conformance"]

#: Blocking the event loop for so much longer than any deadline ends the process.
_BLOCKED_SECONDS = 30.0


@click.group()
def conformance() -> None:
    """Test a plugin against its contract."""


conformance.add_command(api)


@conformance.command()
@click.argument("name", required=False)
@click.argument("engine_flags", nargs=-1, type=click.UNPROCESSED)
@click.option("--model", help="Directory or id of the model; default: the engine's own.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--only", multiple=True, help="Run one check or family (events); may be repeated.")
@click.option("--list", "list_only", is_flag=True, help="Show the checks and what each one wants.")
@click.option("--lora", type=click.Path(exists=True, file_okay=False), help="An adapter of the model, for LoRA checks.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds that a check may take.")
@click.option("--start-timeout", default=300.0, show_default=True, help="Seconds that start() may take.")
def engine(
    name: str | None,
    engine_flags: tuple[str, ...],
    model: str | None,
    as_json: bool,
    only: tuple[str, ...],
    list_only: bool,
    lora: str | None,
    timeout: float,
    start_timeout: float,
) -> None:
    """Test the engine NAME, as registered by a plugin; flags of the engine itself come after ``--``.

    Exit status 1 means that the engine breaks its contract.
    """
    if list_only:
        for check in engine_checks(only):
            click.echo(f"{check.id:<24} {check.contract}")
        return
    if name is None:
        raise click.UsageError("Missing argument 'NAME'. `dynamo plugins` lists the engines.")
    settings = SuiteSettings(start_timeout_seconds=start_timeout, check_timeout_seconds=timeout, lora_directory=lora)
    options = EngineOptions(model=model, argv=engine_flags)
    report = asyncio.run(_run(name, options, only, settings, quiet=as_json))
    click.echo(report.to_json() if as_json else f"\n{name}: {report.summary()}")
    if not report.passed:
        sys.exit(1)


async def _run(
    name: str, options: EngineOptions, only: tuple[str, ...], settings: SuiteSettings, *, quiet: bool
) -> Report:
    def show(result: CheckResult) -> None:
        if not quiet:
            click.echo(render_result(result))

    factory = plugins().engines.get(name)
    longest = max(settings.start_timeout_seconds, settings.check_timeout_seconds)
    async with watchdog(longest + _BLOCKED_SECONDS):
        return await engine_report(factory, options, only=only, settings=settings, on_result=show, subject=name)
