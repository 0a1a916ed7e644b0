"""Loads the built-in plugin and every entry point in the group ``dynamo``, one by one.

A plugin that fails is taken out whole, with the reason in its report; the others are not touched.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click
import pluggy

from dynamo import hookspecs
from dynamo.errors import DynamoError, PluginError, PluginIncompatible
from dynamo.hookspecs import PLUGIN_API_VERSION, PROJECT_NAME
from dynamo.plugins.registry import NamedRegistry, OwnedRegistry, check_target

if TYPE_CHECKING:
    from dynamo.protocols.discovery import Discovery
    from dynamo.protocols.engine import EngineFactory
    from dynamo.protocols.event_plane import EventPlane, EventPlaneOptions
    from dynamo.protocols.parsing import ReasoningOptions, ReasoningParser, ToolCallOptions, ToolCallParser
    from dynamo.protocols.planes import PlaneOptions, RequestPlane
    from dynamo.protocols.routing import WorkerFilter, WorkerPicker, WorkerScorer
    from dynamo.protocols.scheduling import Scheduler

__all__ = ["CommandEntry", "PluginReport", "PluginSource", "Plugins", "load_plugins", "plugins"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginSource:
    """A plugin that can be loaded: where it comes from and how."""

    name: str
    distribution: str
    version: str
    location: str
    load: Callable[[], object]


@dataclass(frozen=True)
class PluginReport:
    """What became of one plugin."""

    name: str
    distribution: str
    version: str
    location: str
    error: str | None = None
    api_version: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether its registrations are in use."""
        return self.error is None


@dataclass(frozen=True)
class CommandEntry:
    """One subcommand of ``dynamo``: an import string, or a loaded command."""

    name: str
    summary: str
    distribution: str
    target: str | click.Command


@dataclass
class Plugins:
    """Everything that plugins registered."""

    engines: NamedRegistry[EngineFactory] = field(default_factory=lambda: NamedRegistry("engine"))
    filters: NamedRegistry[Callable[[], WorkerFilter]] = field(default_factory=lambda: NamedRegistry("router filter"))
    scorers: NamedRegistry[Callable[[], WorkerScorer]] = field(default_factory=lambda: NamedRegistry("router scorer"))
    pickers: NamedRegistry[Callable[[], WorkerPicker]] = field(default_factory=lambda: NamedRegistry("router picker"))
    discovery_backends: NamedRegistry[Callable[[str], Discovery]] = field(
        default_factory=lambda: NamedRegistry("discovery backend")
    )
    request_planes: NamedRegistry[Callable[[PlaneOptions], RequestPlane]] = field(
        default_factory=lambda: NamedRegistry("request plane")
    )
    event_planes: NamedRegistry[Callable[[EventPlaneOptions], EventPlane]] = field(
        default_factory=lambda: NamedRegistry("event plane")
    )
    schedulers: NamedRegistry[Callable[[Path], Scheduler]] = field(default_factory=lambda: NamedRegistry("scheduler"))
    tool_call_parsers: NamedRegistry[Callable[[ToolCallOptions], ToolCallParser]] = field(
        default_factory=lambda: NamedRegistry("tool-call parser")
    )
    reasoning_parsers: NamedRegistry[Callable[[ReasoningOptions], ReasoningParser]] = field(
        default_factory=lambda: NamedRegistry("reasoning parser")
    )
    commands: dict[str, CommandEntry] = field(default_factory=dict)
    reports: list[PluginReport] = field(default_factory=list)

    def registries(self) -> list[NamedRegistry[Any]]:
        """All registries, in the order of the hooks' documentation."""
        return [
            self.engines,
            self.filters,
            self.scorers,
            self.pickers,
            self.discovery_backends,
            self.request_planes,
            self.event_planes,
            self.schedulers,
            self.tool_call_parsers,
            self.reasoning_parsers,
        ]

    def hook_arguments(self, distribution: str) -> dict[str, dict[str, object]]:
        """What each hook is called with on behalf of `distribution`."""

        def own(registry: NamedRegistry[Any]) -> OwnedRegistry[Any]:
            return OwnedRegistry(registry, distribution)

        return {
            "dynamo_register_engines": {"engines": own(self.engines)},
            "dynamo_register_routers": {
                "filters": own(self.filters),
                "scorers": own(self.scorers),
                "pickers": own(self.pickers),
            },
            "dynamo_register_discovery_backends": {"backends": own(self.discovery_backends)},
            "dynamo_register_request_planes": {"planes": own(self.request_planes)},
            "dynamo_register_event_planes": {"planes": own(self.event_planes)},
            "dynamo_register_schedulers": {"schedulers": own(self.schedulers)},
            "dynamo_register_parsers": {
                "tool_calls": own(self.tool_call_parsers),
                "reasoning": own(self.reasoning_parsers),
            },
            "dynamo_register_commands": {"group": _OwnedCommands(self, distribution)},
        }

    def take_over(self, registered: Plugins) -> None:
        """Add all that one plugin registered; the first distribution to take a command name keeps it."""
        for registry, additions in zip(self.registries(), registered.registries(), strict=True):
            for registration in additions:
                registry.add(registration)
        for entry in registered.commands.values():
            taken = self.commands.setdefault(entry.name, entry)
            if taken is not entry:
                logger.warning(
                    "command %r of %s is hidden by the one of %s", entry.name, entry.distribution, taken.distribution
                )


@dataclass(frozen=True)
class _OwnedCommands:
    """The cli hook's argument: signs every command with the distribution being loaded."""

    plugins: Plugins
    distribution: str

    def add_lazy_command(self, name: str, target: str, summary: str) -> None:
        """See `dynamo.protocols.commands.CommandGroup`."""
        check_target(target)
        self._add(CommandEntry(name, summary, self.distribution, target))

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """See `dynamo.protocols.commands.CommandGroup`."""
        self._add(CommandEntry(name or cmd.name or "", cmd.get_short_help_str(), self.distribution, cmd))

    def _add(self, entry: CommandEntry) -> None:
        if not entry.name:
            raise PluginError("a command has no name", hint="pass name= to add_command")
        self.plugins.commands.setdefault(entry.name, entry)


def load_plugins(sources: Iterable[PluginSource]) -> Plugins:
    """Load `sources` in order; failures end in their reports, never in an exception."""
    manager = pluggy.PluginManager(PROJECT_NAME)
    for module in _hookspec_modules():
        manager.add_hookspecs(module)
    loaded = Plugins()
    for source in sources:
        error: str | None = None
        version: str | None = None
        try:
            plugin = source.load()
            version = _check_api_version(plugin, source)
            manager.register(plugin, name=f"{source.distribution}:{source.name}")
            manager.check_pending()
            registered = Plugins()
            _call_hooks(manager, plugin, registered.hook_arguments(source.distribution))
            loaded.take_over(registered)
        # Foreign code runs here: whatever it raises must be reported by name and must not take the others down.
        except (Exception, SystemExit) as failure:  # noqa: BLE001
            error = str(failure) if isinstance(failure, DynamoError) else f"{type(failure).__name__}: {failure}"
            manager.unregister(name=f"{source.distribution}:{source.name}")
            logger.warning("plugin %s of %s is not used: %s", source.name, source.distribution, error)
        loaded.reports.append(
            PluginReport(source.name, source.distribution, source.version, source.location, error, version)
        )
    return loaded


@functools.cache
def plugins() -> Plugins:
    """The plugins of this process, loaded at the first call.

    ``DYN_DISABLE_PLUGINS`` is a comma-separated list of distributions to leave out; ``all`` leaves only the built-in.
    """
    return load_plugins([_builtin(), *_installed(os.environ.get("DYN_DISABLE_PLUGINS", ""))])


def _hookspec_modules() -> list[ModuleType]:
    from dynamo.hookspecs import cli, discovery, engine, parsers, planes, router, scheduler

    return [engine, router, discovery, planes, scheduler, parsers, cli]


def _builtin() -> PluginSource:
    from dynamo.plugins import builtin

    try:
        version = importlib.metadata.version("dynamo-core")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    location = str(Path(hookspecs.__file__).parent.parent)
    return PluginSource("builtin", "dynamo-core", version, location, lambda: builtin)


def _installed(disabled: str) -> list[PluginSource]:
    names = {_canonical(name) for name in disabled.split(",")}
    if "all" in names:
        return []
    found: dict[tuple[str, str], PluginSource] = {}
    for point in importlib.metadata.entry_points(group=PROJECT_NAME):
        source = _source(point)
        if _canonical(source.distribution) not in names:
            found.setdefault((source.distribution, point.name), source)
    return [found[key] for key in sorted(found)]


def _source(point: importlib.metadata.EntryPoint) -> PluginSource:
    dist = point.dist
    # An interrupted installation leaves distributions without metadata behind, which then have no name.
    metadata = dist.metadata if dist else None
    distribution = (metadata["Name"] if metadata else None) or point.value
    version = (metadata["Version"] if metadata else None) or "?"
    return PluginSource(point.name, distribution, version, str(dist.locate_file("")) if dist else "?", point.load)


def _canonical(distribution: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def _check_api_version(plugin: object, source: PluginSource) -> str | None:
    declared = getattr(plugin, "DYNAMO_PLUGIN_API", None)
    if declared is None:
        return None
    text = str(declared)
    major, minor = PLUGIN_API_VERSION
    if text.partition(".")[0] != str(major):
        raise PluginIncompatible(
            f"{source.distribution} {source.version} was written for plugin API {text}; this is {major}.{minor}",
            hint=f"upgrade {source.distribution if _is_older(text, major) else 'dynamo-core'}",
        )
    return text


def _is_older(declared: str, major: int) -> bool:
    head = declared.partition(".")[0]
    return not head.isdigit() or int(head) < major


def _call_hooks(manager: pluggy.PluginManager, plugin: object, arguments: Mapping[str, dict[str, object]]) -> None:
    for name, values in arguments.items():
        for implementation in getattr(manager.hook, name).get_hookimpls():
            if implementation.plugin is plugin:
                implementation.function(**{key: values[key] for key in implementation.argnames})
