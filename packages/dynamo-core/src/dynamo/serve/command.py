"""``dynamo serve``: reads the command line, then runs, shows or changes a deployment of this machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from dynamo.config import settings_from_flags, settings_options
from dynamo.errors import ConfigError
from dynamo.serve.deployment import Deployment, from_flags
from dynamo.serve.frontend_flags import refuse_misspelt_flags, split_frontend_flags
from dynamo.serve.remote import restart_running, scale_running, show_running
from dynamo.serve.run import run_deployment
from dynamo.serve.settings import ServeSettings

__all__ = ["serve"]


_FRONTEND_ARGS = f"{__name__}.frontend_args"


class _ServeCommand(click.Command):
    """Takes the flags of the frontend out first: click drops the ``--`` that protects those of the engine."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_FRONTEND_ARGS], rest = split_frontend_flags(args)
        own = [name for option in self.params if isinstance(option, click.Option) for name in option.opts]
        refuse_misspelt_flags(rest, [name for name in own if name.startswith("--")])
        return super().parse_args(ctx, rest)


@click.command("serve", cls=_ServeCommand, context_settings={"ignore_unknown_options": True})
@settings_options(ServeSettings)
@click.option("--verbose", "-v", is_flag=True, help="Show commands, process ids and ports too.")
@click.option("--dry-run", is_flag=True, help="Print what would run as JSON, and stop.")
@click.option("--status", is_flag=True, help="Show what runs on this machine, and stop.")
@click.option("--scale", metavar="COMPONENT=N", help="Change the number of replicas of what runs, and stop.")
@click.option("--restart", metavar="COMPONENT", help="Replace the replicas of what runs one by one, and stop.")
@click.argument("engine_args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def serve(
    context: click.Context,
    /,
    *,
    verbose: bool,
    dry_run: bool,
    status: bool,
    scale: str | None,
    restart: str | None,
    engine_args: tuple[str, ...],
    **flags: Any,
) -> None:
    """Serve a model, or a graph file, on this machine.

    Without arguments: the reference engine and its demo model, no download. Flags of the frontend and its router
    (python3 -m dynamo.frontend --help) go there; all others, and everything after --, go to the engine.

    \b
      dynamo serve
      dynamo serve --backend vllm --model Qwen/Qwen3-0.6B --max-model-len 8192
      dynamo serve --replicas 2 --router-mode kv --explain --request-log log.jsonl
      dynamo serve -f graph.yaml
    """  # noqa: D301 - click wants the control character
    settings = settings_from_flags(ServeSettings, flags)
    if status:
        asyncio.run(show_running(settings.state_dir))
    elif scale is not None:
        asyncio.run(scale_running(settings.state_dir, scale))
    elif restart is not None:
        asyncio.run(restart_running(settings.state_dir, restart))
    else:
        deployment = _deployment(settings, engine_args, context.meta[_FRONTEND_ARGS])
        if dry_run:
            click.echo(_to_json(deployment))
        else:
            run_deployment(deployment, settings, verbose=verbose)


def _deployment(settings: ServeSettings, engine_args: Sequence[str], frontend_args: Sequence[str]) -> Deployment:
    if engine_args and not engine_args[0].startswith("-"):
        word = engine_args[0]
        flag = "--file" if word.endswith((".yaml", ".yml", ".json")) else "--model"
        raise ConfigError(f"unexpected argument {word!r}", hint=f"did you mean {flag} {word}?")
    if settings.file:
        from dynamo.serve.graph_file import from_graph_file

        if misplaced := [*engine_args, *frontend_args]:
            raise ConfigError(
                f"{misplaced[0]} is for one process, but a graph file has its own commands",
                hint=f"add it to the args of a service in {settings.file}",
            )
        return from_graph_file(settings, os.environ)
    return from_flags(settings, engine_args, os.environ, frontend_args)


def _to_json(deployment: Deployment) -> str:
    encoded = msgspec.json.encode({"components": deployment.components, "notes": deployment.notes})
    return msgspec.json.format(encoded, indent=2).decode()
