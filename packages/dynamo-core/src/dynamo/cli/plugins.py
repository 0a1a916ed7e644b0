"""``dynamo plugins``: what is installed, where it comes from, and what is broken and why.

Lists registrations without importing what they point to; ``--check`` imports each one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import click

from dynamo.cli.table import format_table
from dynamo.plugins import NamedRegistry, PluginReport, Plugins, Registration, plugins
from dynamo.plugins.loading import CommandEntry
from dynamo.plugins.registry import import_target

__all__ = ["Part", "list_parts", "plugins_command"]


@dataclass(frozen=True)
class Part:
    """One registered name."""

    kind: str
    name: str
    stability: str
    distribution: str
    version: str
    target: str
    summary: str
    problem: str | None = None


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Import every part too (slow: engines load their libraries).")
@click.pass_context
def plugins_command(ctx: click.Context, as_json: bool, check: bool) -> None:
    """Show what is installed, from where, and whether it is healthy.

    With --check the exit code is 1 when something is broken.
    """
    loaded = plugins()
    parts = list_parts(loaded, check=check)
    click.echo(_to_json(loaded.reports, parts) if as_json else _to_text(loaded.reports, parts))
    broken = any(part.problem for part in parts) or not all(report.healthy for report in loaded.reports)
    ctx.exit(1 if check and broken else 0)


def list_parts(loaded: Plugins, *, check: bool = False) -> list[Part]:
    """All registrations with what is wrong with them; `check` imports their targets."""
    versions = {report.distribution: report.version for report in loaded.reports}

    def part(
        kind: str, entry: Registration[Any] | CommandEntry, stability: str = "", problem: str | None = None
    ) -> Part:
        return Part(
            kind=kind,
            name=entry.name,
            stability=stability,
            distribution=entry.distribution,
            version=versions.get(entry.distribution, "?"),
            target=_target_text(entry.target),
            summary=entry.summary,
            problem=problem or (_import_problem(entry.target) if check else None),
        )

    registered = [
        part(registry.kind, entry, entry.stability, _conflict(registry, entry.name))
        for registry in loaded.registries()
        for entry in registry
    ]
    return registered + [part("command", command) for command in loaded.commands.values()]


def _conflict(registry: NamedRegistry[Any], name: str) -> str | None:
    if name not in registry.conflicts():
        return None
    owners = sorted(entry.distribution for entry in registry if entry.name == name)
    return f"conflict: registered by {' and '.join(owners)}; uninstall one of them"


def _target_text(target: object) -> str:
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', type(target).__name__)}"


def _import_problem(target: object) -> str | None:
    if not isinstance(target, str):
        return None
    try:
        import_target(target)
    # Foreign modules run here; whatever they raise is the finding.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return f"cannot be imported: {type(error).__name__}: {error}"
    return None


def _to_json(reports: list[PluginReport], parts: list[Part]) -> str:
    document = {
        "plugins": [{**asdict(report), "healthy": report.healthy} for report in reports],
        "parts": [{**asdict(part), "healthy": part.problem is None} for part in parts],
    }
    return json.dumps(document, indent=2)


def _to_text(reports: list[PluginReport], parts: list[Part]) -> str:
    shown = [
        (part.kind, part.name, part.stability or "-", f"{part.distribution} {part.version}", _health(part.problem))
        for part in parts
    ]
    sources = [(f"{r.distribution} {r.version}", r.name, r.location, _health(r.error)) for r in reports]
    return "\n\n".join(
        [
            format_table(("KIND", "NAME", "STABILITY", "DISTRIBUTION", "HEALTH"), shown),
            format_table(("DISTRIBUTION", "PLUGIN", "LOCATION", "HEALTH"), sources),
        ]
    )


def _health(problem: str | None) -> str:
    return "ok" if problem is None else " ".join(problem.split())
