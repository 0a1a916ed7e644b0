"""Shows and changes what another ``dynamo serve`` runs: its flags ``--status``, ``--scale`` and ``--restart``."""

from __future__ import annotations

from pathlib import Path

import click

from dynamo.errors import CannotConnect, ConfigError
from dynamo.protocols.scheduling import ComponentStatus
from dynamo.serve.control import ControlClient
from dynamo.serve.state import running

__all__ = ["restart_running", "scale_running", "show_running"]


async def show_running(state_dir: str) -> None:
    """Print every component of every run.

    Raises:
        CannotConnect: nothing runs.
    """
    for run in _runs(state_dir):
        click.echo(run)
        for component in await ControlClient(run).status():
            click.echo(_describe(component))


async def scale_running(state_dir: str, change: str) -> None:
    """Apply ``COMPONENT=N``.

    Raises:
        ConfigError: it is malformed, there is no such component, or several runs have to be told apart.
        CannotConnect: nothing runs.
    """
    component, _, count = change.partition("=")
    if not component or not (count.isascii() and count.isdigit()):
        raise ConfigError(f"--scale {change} is not COMPONENT=N", param="--scale", hint="for example --scale worker=2")
    click.echo(_describe(await ControlClient(_one_run(state_dir)).scale(component, int(count))))


async def restart_running(state_dir: str, component: str) -> None:
    """Replace the replicas of `component`; returns when the new ones are ready.

    Raises:
        ConfigError: there is no such component, or several runs have to be told apart.
        EngineError: a new replica did not become ready.
        CannotConnect: nothing runs.
    """
    await ControlClient(_one_run(state_dir)).restart(component)
    click.echo(f"{component} was restarted")


def _runs(state_dir: str) -> list[Path]:
    runs = running(state_dir)
    if not runs:
        raise CannotConnect("nothing is running", hint="start something with `dynamo serve`")
    return runs


def _one_run(state_dir: str) -> Path:
    runs = _runs(state_dir)
    if len(runs) > 1:
        listed = "".join(f"\n  --state-dir {run}" for run in runs)
        raise ConfigError(f"{len(runs)} deployments are running", hint=f"name one:{listed}")
    return runs[0]


def _describe(component: ComponentStatus) -> str:
    head = (
        f"  {component.name}: {component.ready_replicas} of {component.desired_replicas} ready, "
        f"generation {component.generation}"
    )
    lines = [
        f"    {replica.index}: {replica.state}, process {replica.pid or '-'}, {replica.restarts} restarts"
        + (f", {replica.message}" if replica.message else "")
        for replica in component.replicas
    ]
    return "\n".join([head, *lines])
