"""docs/reference/cli.md: the help of every program, as it prints it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from dynamo.plugins import builtin
from dynamo.plugins.loading import CommandEntry, PluginSource, load_plugins
from tools.docs.markdown import GENERATED

__all__ = ["help_of", "page", "programs"]

_ROOT = Path(__file__).parents[2]


def programs() -> list[tuple[str, ...]]:
    """Every command line of the workspace that takes ``--help``, without it."""
    commands = load_plugins([PluginSource("builtin", "dynamo-core", "", "", lambda: builtin)]).commands
    mains = _ROOT.glob("packages/*/src/dynamo/**/__main__.py")
    modules = sorted(".".join(path.parts[path.parts.index("src") + 2 : -1]) for path in mains)
    return [
        ("dynamo",),
        *(program for name, entry in sorted(commands.items()) for program in _with_subcommands(name, entry)),
        *(("python3", "-m", f"dynamo.{name}") for name in modules if name != "cli"),
    ]


def _with_subcommands(name: str, entry: CommandEntry) -> list[tuple[str, ...]]:
    """A command and, if it is a group, what is in it."""
    module, _, attribute = str(entry.target).partition(":")
    command = getattr(importlib.import_module(module), attribute)
    inner = sorted(command.commands) if isinstance(command, click.Group) else []
    return [("dynamo", name), *(("dynamo", name, each) for each in inner)]


def help_of(program: tuple[str, ...]) -> str:
    """What the program prints for ``--help``, without plugins of this machine and without its environment.

    Raises:
        RuntimeError: the program failed.
    """
    executable = sys.executable if program[0] == "python3" else _script(program[0])
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DYN_", "DYNAMO_"))}
    environment |= {"COLUMNS": "100", "DYN_DISABLE_PLUGINS": "all", "NO_COLOR": "1"}
    done = subprocess.run(
        [executable, *program[1:], "--help"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(program)} --help exits {done.returncode}: {done.stderr}")
    return done.stdout


def page() -> str:
    """The page."""
    parts = [f"# Command line\n\n{GENERATED}\n"]
    with ThreadPoolExecutor(2) as pool:
        for program, text in zip(programs(), pool.map(help_of, programs()), strict=True):
            parts.append(f"## {' '.join(program)}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def _script(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise RuntimeError(f"{name} is not installed beside {sys.executable}")
    return found
