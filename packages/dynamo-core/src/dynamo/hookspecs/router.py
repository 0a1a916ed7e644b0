"""Routing: filters, scorers and pickers from which router modes are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.hookspecs import hookspec

if TYPE_CHECKING:
    from dynamo.protocols.registry import Registry
    from dynamo.protocols.routing import WorkerFilter, WorkerPicker, WorkerScorer

__all__ = ["dynamo_register_routers"]


@hookspec
def dynamo_register_routers(
    filters: Registry[Callable[[], WorkerFilter]],
    scorers: Registry[Callable[[], WorkerScorer]],
    pickers: Registry[Callable[[], WorkerPicker]],
) -> None:
    """Register parts of routing decisions.

    A target is a class or function without arguments. A picker's name is also a router mode (``--router-mode NAME``)
    that uses it alone.
    """
