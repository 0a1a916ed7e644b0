"""Where a run of ``dynamo serve`` keeps what outlives it: files, batches and responses of its frontends.

A run's state directory goes with the run. By default there is a store per user, machine and model (or graph): who
serves the same again finds what was kept, and two runs of one model share it as frontends do. The machine is part of it
because home directories may be on a network, where SQLite files must not be shared.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.serve.settings import ServeSettings

__all__ = ["FORGET", "choose_store"]

#: Value of ``--store-dir`` that keeps nothing beyond the run.
FORGET = "none"
_NAME_CHARACTERS = 64


def choose_store(settings: ServeSettings, served: str) -> Path | None:
    """The directory, made if it is missing and private then; None: everything goes with the run.

    `served` is what the run serves: a model's name or directory, or a graph's name.

    Raises:
        ConfigError: the one that the user named cannot be used.
    """
    if settings.store_dir == FORGET:
        return None
    if settings.store_dir:
        path = Path(settings.store_dir).expanduser().absolute()
        try:
            return _made(path)
        except OSError as error:
            raise ConfigError(
                f"cannot use {path} for files, batches and responses: {error.strerror}",
                param="--store-dir",
                hint=f"choose another directory with --store-dir, or {FORGET} to keep nothing",
            ) from error
    try:
        return _made(_state_home(settings.state_dir) / "store" / _slug(socket.gethostname()) / _slug(served))
    except (OSError, RuntimeError):  # no home directory, or one that cannot be written
        return None


def _state_home(state_dir: str) -> Path:
    """Unlike the state directory of runs it outlives a reboot (XDG Base Directory Specification)."""
    if state_dir:
        return Path(state_dir).absolute()
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "state") / "dynamo"


def _made(path: Path) -> Path:
    missing = [path, *path.parents]
    for directory in reversed(missing[: next(i for i, known in enumerate(missing) if known.exists())]):
        directory.mkdir(mode=0o700, exist_ok=True)
    if not path.is_dir():
        raise NotADirectoryError(20, "Not a directory")
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied")
    return path


def _slug(name: str) -> str:
    """A file name that tells what it is for, and is another one for every `name`."""
    if name and Path(name).is_dir():
        name = str(Path(name).resolve())
    readable = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[-_NAME_CHARACTERS:]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
