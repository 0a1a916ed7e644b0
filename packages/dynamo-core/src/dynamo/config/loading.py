"""Builds a settings object from flags, environment and file, and says which of them was wrong."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from dynamo.config.settings import SettingInfo, Settings, nearest, setting_infos
from dynamo.errors import ConfigError

__all__ = ["element_type", "load_settings", "read_config_file"]

S = TypeVar("S", bound=Settings)


def load_settings(
    settings_class: type[S],
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Mapping[str, Any] | None = None,
) -> S:
    """Build `settings_class`.

    `flags` maps field names to values that were given on the command line (None counts as not given), `file` is the
    section of a configuration file.

    Raises:
        ConfigError: a value is wrong (the message names where it came from) or a file key is unknown.
    """
    infos = setting_infos(settings_class)
    known = [info.name for info in infos]
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for key, value in (file or {}).items():
        if key not in known:
            raise _unknown_key(settings_class, key, known)
        values[key], source[key] = value, f"{settings_class.section or 'file'}.{key}"
    for info in infos:
        for name in info.env:
            text = (environ or {}).get(name, "")
            if text:
                values[info.name], source[info.name] = _from_text(info, text), name
                break
    for info in infos:
        value = (flags or {}).get(info.name)
        if value is not None:
            values[info.name] = value
            source[info.name] = info.flags[0] if info.flags else info.name
    try:
        return settings_class(**values)
    except ValidationError as error:
        raise _explain(error, settings_class, source) from error


def read_config_file(path: Path) -> dict[str, dict[str, Any]]:
    """Read a YAML (or JSON) file of sections, one per subsystem.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a map of maps.
    """
    try:
        with path.open(encoding="utf-8") as file:  # errors then name it
            data = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"cannot read configuration file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(section, dict) for section in data.values()):
        raise ConfigError(f"{path}: expected a map of sections, each a map of settings")
    return data


def element_type(annotation: Any) -> Any | None:
    """The element type of a list annotation (``list[T]``, ``list[T] | None``), else None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(annotation) if a is not type(None)]
        annotation = options[0] if len(options) == 1 else annotation
    if typing.get_origin(annotation) in (list, tuple):
        return typing.get_args(annotation)[0]
    return None


def _from_text(info: SettingInfo, text: str) -> Any:
    if element_type(info.field.annotation) is not None:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _unknown_key(settings_class: type[Settings], key: str, known: list[str]) -> ConfigError:
    guess = nearest(key, known)
    hint = f"did you mean {guess!r}?" if guess else f"known settings: {', '.join(sorted(known))}"
    return ConfigError(f"unknown setting {settings_class.section}.{key}", param=key, hint=hint)


def _explain(error: ValidationError, settings_class: type[Settings], source: Mapping[str, str]) -> ConfigError:
    secret = {info.name for info in setting_infos(settings_class) if info.secret}
    parts = []
    first = None
    for item in error.errors(include_url=False, include_context=False):
        # Without a location the input is the whole settings object, secrets included.
        name = str(item["loc"][0]) if item["loc"] else settings_class.section
        first = first or name
        shown = "" if name in secret or not item["loc"] else f", got {item.get('input')!r}"
        parts.append(f"{source.get(name, name)}: {item['msg'][:1].lower()}{item['msg'][1:]}{shown}")
    return ConfigError("; ".join(parts), param=first)
