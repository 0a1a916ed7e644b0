"""The command line of a worker process: our flags are split off, the rest goes to the engine untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from dynamo.config import Settings, settings_from_flags, settings_options
from dynamo.plugins import plugins
from dynamo.protocols.engine import EngineOptions
from dynamo.runtime.distributed import DistributedRuntime, config_errors_end_the_process, run_process
from dynamo.runtime.garbage import collect_seldom
from dynamo.runtime.settings import RuntimeSettings
from dynamo.worker.host import Worker
from dynamo.worker.models import is_model_id, resolve_model
from dynamo.worker.settings import WorkerSettings

__all__ = ["run"]


class _WorkerCommand(click.Command):
    """Shows the flags of its engine beside its own, which are all that it parses."""

    engine_settings: type[Settings] | None = None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Command.format_options`."""
        if self.engine_settings is not None:

            @click.command()
            @settings_options(self.engine_settings)
            def engine(**_flags: Any) -> None:
                """Only looked at, never run."""

            with formatter.section("Flags of the engine"):
                formatter.write_dl([row for flag in engine.params if (row := flag.get_help_record(ctx))])
        super().format_options(ctx, formatter)


def run(backend: str | None, argv: Sequence[str] | None, engine_settings: type[Settings] | None = None) -> None:
    """Parse the command line and host the engine until the process is told to stop.

    ``--help`` shows the flags of `engine_settings` too.
    """

    @click.command(
        cls=_WorkerCommand,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
        help="Host one engine as a worker. Flags that are not listed here go to the engine.",
    )
    @settings_options(WorkerSettings, RuntimeSettings)
    @click.argument("engine_args", nargs=-1, type=click.UNPROCESSED)
    def command(engine_args: tuple[str, ...], **flags: Any) -> None:
        _serve(str(flags.pop("backend_name", None) or backend), engine_args, flags)

    command.engine_settings = engine_settings
    if backend is None:
        command = click.option(
            "--backend", "backend_name", required=True, help="Name of an installed engine; see `dynamo plugins`."
        )(command)
    command(args=list(argv) if argv is not None else None, prog_name=f"python3 -m dynamo.{backend or 'worker'}")


def _serve(backend: str, engine_args: Sequence[str], flags: dict[str, Any]) -> None:
    with config_errors_end_the_process():
        runtime_settings = settings_from_flags(RuntimeSettings, flags)
        settings = settings_from_flags(WorkerSettings, flags)
        factory = plugins().engines.get(backend)
        engine = factory(
            EngineOptions(
                model=resolve_model(settings.model, revision=settings.revision) if settings.model else None,
                served_model_name=settings.served_model_name or _model_id(settings.model),
                mode=settings.mode,
                argv=tuple(engine_args),
            )
        )

    async def body(runtime: DistributedRuntime) -> None:
        await Worker(engine, backend, settings, runtime, on_ready=collect_seldom).run()

    run_process(runtime_settings, body, f"dynamo-worker-{backend}")


def _model_id(model: str) -> str | None:
    """Clients call a model from a hub by its id, not by the directory of the cache that it ends in."""
    return model if model and is_model_id(model) else None
