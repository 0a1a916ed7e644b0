"""Directories of runs: each ``dynamo serve`` has a fresh one below the state directory, removed when it ends."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.runtime.settings import default_state_directory
from dynamo.serve.control import SOCKET_NAME

__all__ = ["new_run_directory", "running"]

#: Younger directories may belong to a process that has not locked them yet.
_STALE_SECONDS = 30.0


def new_run_directory(state_dir: str) -> Path:
    """Make a private directory for this run; what dead runs left is removed.

    Raises:
        ConfigError: the state directory cannot be written, or belongs to somebody else.
    """
    runs = _runs(state_dir)
    try:
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        if runs.stat().st_uid != os.getuid():
            raise ConfigError(f"{runs} belongs to another user", hint="choose another directory with --state-dir")
        for old in runs.iterdir():
            if _is_stale(old):
                shutil.rmtree(old, ignore_errors=True)
        run = runs / secrets.token_hex(4)
        run.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot use state directory {runs.parent}: {error.strerror}",
            param="--state-dir",
            hint="choose another directory with --state-dir",
        ) from error
    return run


def running(state_dir: str) -> list[Path]:
    """Directories of the runs that answer, oldest first; `state_dir` may be the directory of a run itself."""
    own = Path(state_dir or default_state_directory())
    if (own / SOCKET_NAME).exists():
        return [own]
    found = [path.parent for path in _runs(state_dir).glob(f"*/{SOCKET_NAME}") if _is_locked(path.parent)]
    return sorted(found, key=lambda run: run.stat().st_mtime)


def _runs(state_dir: str) -> Path:
    return Path(state_dir or default_state_directory()) / "runs"


def _is_stale(run: Path) -> bool:
    try:
        return time.time() - run.stat().st_mtime > _STALE_SECONDS and not _is_locked(run)
    except OSError:
        return False


def _is_locked(run: Path) -> bool:
    try:
        with (run / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
