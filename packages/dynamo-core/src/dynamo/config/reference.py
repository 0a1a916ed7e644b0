"""The reference page of settings, generated from the models."""

from __future__ import annotations

import typing
from typing import Any

from dynamo.config.settings import Settings, setting_infos

__all__ = ["settings_table"]


def settings_table(settings_class: type[Settings]) -> str:
    """Markdown: the class docstring and one table row per setting."""
    doc = (settings_class.__doc__ or "").strip().split("\n\n")[0]
    lines = [
        f"## {settings_class.__name__}",
        "",
        " ".join(doc.split()),
        "",
        "| setting | type | default | flag | environment | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for info in setting_infos(settings_class):
        default = info.field.get_default(call_default_factory=True)
        cells = [
            f"`{settings_class.section}.{info.name}`",
            f"`{_type_name(info.field.annotation)}`",
            "secret" if info.secret else f"`{default!r}`",
            ", ".join(f"`{flag}`" for flag in info.flags) or "-",
            ", ".join(f"`{name}`" for name in info.env) or "-",
            info.help,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is not None:
        return str(annotation).replace("typing.", "").replace("pathlib.", "")
    return getattr(annotation, "__name__", str(annotation))
