"""click options generated from settings, so that flag, variable and docs cannot differ."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import click

from dynamo.config.loading import element_type, load_settings
from dynamo.config.settings import SettingInfo, Settings, setting_infos

__all__ = ["settings_from_flags", "settings_options"]

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=Settings)


def settings_options(*settings_classes: type[Settings]) -> Callable[[F], F]:
    """Decorate a click command with one option per setting that has a flag.

    Values arrive in the command's ``**flags`` under ``section__field``; :func:`settings_from_flags` takes them apart.
    """

    def decorate(function: F) -> F:
        options = [
            _option(settings_class, info)
            for settings_class in settings_classes
            for info in setting_infos(settings_class)
            if info.flags
        ]
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def settings_from_flags(
    settings_class: type[S],
    flags: Mapping[str, Any],
    *,
    file: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> S:
    """Build one settings object from a command's ``**flags`` and the environment.

    Raises:
        ConfigError: a value is wrong.
    """
    prefix = f"{settings_class.section}__"
    own = {key.removeprefix(prefix): value for key, value in flags.items() if key.startswith(prefix) and value != ()}
    return load_settings(settings_class, flags=own, environ=os.environ if environ is None else environ, file=file)


def _option(settings_class: type[Settings], info: SettingInfo) -> Callable[[F], F]:
    default = info.field.get_default(call_default_factory=True)
    notes = []
    if default not in (None, "", [], {}):
        notes.append(f"default: {default}")
    if info.env:
        notes.append(f"env: {', '.join(info.env)}")
    text = info.help + (f"  [{'; '.join(notes)}]" if notes else "")
    destination = f"{settings_class.section}__{info.name}"
    inner = _plain(info.field.annotation)
    if inner is bool:
        spelled = [f"{flag}/--no-{flag.removeprefix('--')}" for flag in info.flags]
        return click.option(*spelled, destination, default=None, help=text)
    if element_type(info.field.annotation) is not None:
        return click.option(*info.flags, destination, multiple=True, help=text)
    return click.option(*info.flags, destination, default=None, type=_click_type(inner), help=text)


def _plain(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(annotation) if a is not type(None)]
        if len(options) == 1:
            return options[0]
    return annotation


def _click_type(annotation: Any) -> click.ParamType[Any] | None:
    if annotation is int:
        return click.INT
    if annotation is float:
        return click.FLOAT
    if typing.get_origin(annotation) is Literal:
        return click.Choice([str(choice) for choice in typing.get_args(annotation)])
    return click.STRING
