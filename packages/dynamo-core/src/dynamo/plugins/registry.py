"""A registry of names whose parts are imported when somebody chooses them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from dynamo.errors import PluginConflict, PluginError, PluginNotFound
from dynamo.protocols.registry import Stability

__all__ = ["NamedRegistry", "OwnedRegistry", "Registration", "check_target", "import_target"]

T = TypeVar("T")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")


@dataclass(frozen=True)
class Registration(Generic[T]):
    """One name and where it came from."""

    name: str
    target: str | T
    distribution: str
    stability: Stability = "beta"
    summary: str = ""


@dataclass
class NamedRegistry(Generic[T]):
    """All registrations of one kind, e.g. ``engine``."""

    kind: str
    _entries: dict[str, list[Registration[T]]] = field(default_factory=dict)

    def add(self, registration: Registration[T]) -> None:
        """Add a registration; a name that is taken becomes a conflict, reported when it is asked for."""
        self._entries.setdefault(registration.name, []).append(registration)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def __iter__(self) -> Iterator[Registration[T]]:
        for name in self.names():
            yield from self._entries[name]

    def conflicts(self) -> list[str]:
        """Names that more than one distribution registered."""
        return [name for name in self.names() if len(self._entries[name]) > 1]

    def registration(self, name: str) -> Registration[T]:
        """The registration of `name`.

        Raises:
            PluginNotFound: nobody registered it; the hint lists the names there are.
            PluginConflict: two distributions did; the message names both.
        """
        entries = self._entries.get(name)
        if not entries:
            known = ", ".join(self.names()) or "none"
            raise PluginNotFound(
                f"there is no {self.kind} named {name!r}",
                hint=f"installed: {known}. `dynamo plugins` shows where they come from and what is broken.",
            )
        if len(entries) > 1:
            owners = " and ".join(sorted(entry.distribution for entry in entries))
            raise PluginConflict(
                f"{self.kind} {name!r} is registered by {owners}",
                hint="uninstall one of the two distributions",
            )
        return entries[0]

    def get(self, name: str) -> T:
        """The part named `name`, imported now if it was registered as an import string.

        Raises:
            PluginNotFound, PluginConflict: see :meth:`registration`.
            PluginError: its module cannot be imported; the message names the distribution.
        """
        entry = self.registration(name)
        if not isinstance(entry.target, str):
            return entry.target
        try:
            return cast("T", import_target(entry.target))
        # Foreign code runs here: a missing driver, for one, is an OSError.
        except Exception as error:
            raise PluginError(
                f"{self.kind} {name!r} of {entry.distribution} cannot be imported: {error}",
                hint=f"is everything that {entry.distribution} needs installed? `dynamo doctor` checks.",
            ) from error


@dataclass(frozen=True)
class OwnedRegistry(Generic[T]):
    """What a hook receives: a registry that signs every entry with the distribution being loaded."""

    registry: NamedRegistry[T]
    distribution: str

    def register(self, name: str, target: str | T, *, stability: Stability = "beta", summary: str = "") -> None:
        """See `dynamo.protocols.registry.Registry`."""
        if not _NAME.match(name):
            raise PluginError(
                f"{self.registry.kind} name {name!r} is not valid",
                hint="use lower-case letters, digits, '-', '_', '.'",
            )
        if isinstance(target, str):
            check_target(target)
        self.registry.add(Registration(name, target, self.distribution, stability, summary))


def check_target(target: str) -> None:
    """Refuse a string that is not ``package.module:attribute``.

    Raises:
        PluginError: it is not.
    """
    if not _TARGET.match(target):
        raise PluginError(f"{target!r} is not an import string", hint="write it as 'package.module:attribute'")


def import_target(target: str) -> Any:
    """Import ``package.module:attribute``.

    Raises:
        ImportError: the module or the attribute does not exist.
    """
    module_name, _, path = target.partition(":")
    value: Any = importlib.import_module(module_name)
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            raise ImportError(f"{module_name} has no {path}") from error
    return value
