"""Planes: how requests and their answers travel between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.hookspecs import hookspec

if TYPE_CHECKING:
    from dynamo.protocols.event_plane import EventPlane, EventPlaneOptions
    from dynamo.protocols.planes import PlaneOptions, RequestPlane
    from dynamo.protocols.registry import Registry

__all__ = ["dynamo_register_event_planes", "dynamo_register_request_planes"]


@hookspec
def dynamo_register_request_planes(planes: Registry[Callable[[PlaneOptions], RequestPlane]]) -> None:
    """Register request planes by the name that ``--request-plane`` takes.

    The target gets :class:`~dynamo.protocols.planes.PlaneOptions` and makes a
    :class:`~dynamo.protocols.planes.RequestPlane` that has no socket yet.
    """


@hookspec
def dynamo_register_event_planes(planes: Registry[Callable[[EventPlaneOptions], EventPlane]]) -> None:
    """Register event planes by the name that ``--event-plane`` takes.

    The target gets :class:`~dynamo.protocols.event_plane.EventPlaneOptions` and makes an
    :class:`~dynamo.protocols.event_plane.EventPlane` that has no socket yet.
    """
