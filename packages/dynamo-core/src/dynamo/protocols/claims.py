"""Claims: a worker says by itself that it takes the next request, because the request plane's broker picked it.

Both halves are optional capabilities of a request plane (`dynamo.protocols.planes`). A claim is an offer: the router
asks for one only where every worker is as good as any other to it, and takes it only if its filters left that worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.discovery import InstanceRecord

__all__ = ["Claim", "ClaimingPlane", "ClaimingServer", "CountsClaims"]


class Claim(msgspec.Struct, frozen=True):
    """One worker's offer to take one request."""

    worker: WorkerKey
    by: str
    """Name of the plane whose broker picked it."""


@runtime_checkable
class ClaimingPlane(Protocol):
    """A `RequestPlane` whose broker can pick a worker. Optional."""

    def claim(self, instances: Sequence[InstanceRecord]) -> asyncio.Future[Claim | None] | None:
        """Have one of `instances`, which is not empty, come forward; None: choose at once, there is nobody to ask.

        The future never fails, and is done within a small fraction of a second: with None when nobody came forward.
        """
        ...


@runtime_checkable
class ClaimingServer(Protocol):
    """A `PlaneServer` whose broker can pick it. Optional."""

    def offer(self, record: InstanceRecord) -> InstanceRecord:
        """`record` with what lets others ask the group that :meth:`join` enters."""
        ...

    async def join(self, record: InstanceRecord, has_room: Callable[[], bool]) -> None:
        """Claim requests for the offered `record` while `has_room` says that one more can be served.

        Joining again with another record of the endpoint is allowed.
        """
        ...

    async def leave(self) -> None:
        """Claim nothing more. Idempotent."""
        ...


@runtime_checkable
class CountsClaims(Protocol):
    """A `ClaimingPlane` or `ClaimingServer` that says how its asks ended: ``dynamo_request_plane_claims``. Optional."""

    @property
    def claim_outcomes(self) -> Mapping[str, int]:
        """Asks since the start, by how they ended; outcomes that have not happened yet are 0."""
        ...
