"""docs/reference/settings.md: every setting with its flag, environment names and default."""

from __future__ import annotations

import importlib
from pathlib import Path

from dynamo.config import Settings, setting_infos, settings_table
from dynamo.config.variables import READ_WITHOUT_SETTINGS
from tools.docs.markdown import GENERATED

__all__ = ["page", "settings_classes", "variables"]

_ROOT = Path(__file__).parents[2]


def settings_classes() -> list[type[Settings]]:
    """Every settings class of the workspace, by section. They live in modules named ``settings``."""
    found: dict[str, type[Settings]] = {}
    for path in sorted(_ROOT.glob("packages/*/src/dynamo/**/settings.py")):
        source = path.parents[[parent.name for parent in path.parents].index("src")]
        module = importlib.import_module(".".join(path.relative_to(source).with_suffix("").parts))
        for value in vars(module).values():
            own = isinstance(value, type) and issubclass(value, Settings) and value.__module__ == module.__name__
            if own and value is not Settings:
                found[f"{value.section} {value.__name__}"] = value
    return [found[key] for key in sorted(found)]


def page() -> str:
    """The page."""
    intro = f"""# Settings

{GENERATED}

One class per subsystem. A value comes from, first to last: the flag, the environment variable (the first name that is
set and not empty), the configuration file, the default. The unit is in the name. An unknown key in a file is refused
with the nearest known name. A secret has no flag, since command lines are public.
"""
    return "\n".join([intro, *(settings_table(cls) for cls in settings_classes())])


def variables() -> str:
    """Every environment variable of ours, one a line: what `dynamo.config.variables` takes misspelt ones to mean."""
    names = {name for cls in settings_classes() for info in setting_infos(cls) for name in info.env}
    ours = {name for name in names if name.startswith(("DYN_", "DYNAMO_"))}
    return "".join(f"{name}\n" for name in sorted({*ours, *READ_WITHOUT_SETTINGS}))
