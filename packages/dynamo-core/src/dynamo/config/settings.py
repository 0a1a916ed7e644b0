"""The settings base class and how a field says its flags and environment names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

__all__ = ["SettingInfo", "Settings", "nearest", "setting", "setting_infos"]


class Settings(BaseModel):
    """Base of every subsystem's settings; the docstring under a field is its help text.

    ``section`` is the key of this subsystem in a configuration file.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        arbitrary_types_allowed=False,
        # Errors are explained by dynamo.config.loading; a traceback of the chained one must not show secrets.
        hide_input_in_errors=True,
    )
    section: ClassVar[str] = ""


class SettingInfo(NamedTuple):
    """One field of a settings class, as options and docs need it."""

    name: str
    flags: tuple[str, ...]
    env: tuple[str, ...]
    field: FieldInfo
    secret: bool

    @property
    def help(self) -> str:
        """The field's docstring in one line."""
        return " ".join((self.field.description or "").split())


def setting(
    default: Any,
    *,
    env: Sequence[str] = (),
    flags: Sequence[str] | None = None,
    secret: bool = False,
    **constraints: Any,
) -> Any:
    """A field with its environment names (the first set one wins) and flags.

    `flags` None derives ``--field-name``; an empty sequence means no flag. A `secret` has no flag, since command
    lines are public, and is never printed. `constraints` go to :func:`pydantic.Field` (``ge``, ``le``, ...).
    """
    extra: dict[str, Any] = {"env": list(env), "secret": secret}
    if secret:
        extra["flags"] = []
    elif flags is not None:
        extra["flags"] = list(flags)
    if isinstance(default, (list, dict, set)):
        return Field(default_factory=default.copy, json_schema_extra=extra, repr=not secret, **constraints)
    return Field(default=default, json_schema_extra=extra, repr=not secret, **constraints)


def setting_infos(settings_class: type[Settings]) -> list[SettingInfo]:
    """All fields of `settings_class` in order."""
    infos = []
    for name, field in settings_class.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        flags = extra.get("flags")
        env = extra.get("env")
        infos.append(
            SettingInfo(
                name=name,
                flags=tuple(str(f) for f in flags) if isinstance(flags, list) else (f"--{name.replace('_', '-')}",),
                env=tuple(str(e) for e in env) if isinstance(env, list) else (),
                field=field,
                secret=bool(extra.get("secret")),
            )
        )
    return infos


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that `word` is most likely meant to be, if any is near."""
    folded = {k.lower().replace("-", "_"): k for k in known}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), list(folded), n=1, cutoff=0.6)
    return folded[close[0]] if close else None
