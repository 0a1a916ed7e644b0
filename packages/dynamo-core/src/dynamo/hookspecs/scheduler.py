"""Schedulers: where processes run and how many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo.hookspecs import hookspec

if TYPE_CHECKING:
    from dynamo.protocols.registry import Registry
    from dynamo.protocols.scheduling import Scheduler

__all__ = ["dynamo_register_schedulers"]


@hookspec
def dynamo_register_schedulers(schedulers: Registry[Callable[[Path], Scheduler]]) -> None:
    """Register schedulers by name.

    The target gets the state directory of the deployment and makes a
    :class:`~dynamo.protocols.scheduling.Scheduler` that runs nothing yet.
    """
