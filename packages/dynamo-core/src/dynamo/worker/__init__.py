"""The worker host: runs one engine on an endpoint until it is told to stop. Backends call :func:`main`."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(backend: str | None = None, argv: Sequence[str] | None = None) -> None:
    """Run a worker process; ``python3 -m dynamo.BACKEND`` is this with the backend's name.

    `backend` None takes it from ``--backend``; `argv` None takes the process's arguments. Does not return.
    """
    from dynamo.worker.command import run

    run(backend, argv)
