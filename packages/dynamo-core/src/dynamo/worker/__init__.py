"""The worker host: runs one engine on an endpoint until it is told to stop. Backends call :func:`main`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamo.config import Settings

__all__ = ["main"]


def main(
    backend: str | None = None,
    argv: Sequence[str] | None = None,
    *,
    engine_settings: type[Settings] | None = None,
) -> None:
    """Run a worker process; ``python3 -m dynamo.BACKEND`` is this with the backend's name.

    `backend` None takes it from ``--backend``; `argv` None takes the process's arguments; `engine_settings` are the
    engine's own, whose flags ``--help`` shows too. Does not return.
    """
    from dynamo.worker.command import run

    run(backend, argv, engine_settings)
