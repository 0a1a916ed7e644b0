"""Follows the keys of a prefix for as long as a process runs, over lost connections, compactions and outages.

After each interruption the prefix is read anew, at a revision from which the next watch starts: nothing is lost, and
an etcd that came back with other data, or none, is no special case.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from dynamo.errors import DiscoveryError
from dynamo.runtime.etcd.connection import EtcdConnection
from dynamo.runtime.etcd.outage import Outage
from dynamo.runtime.etcd.watch import Change

__all__ = ["PrefixView", "follow", "retry_seconds"]


class PrefixView(Protocol):
    """Who follows."""

    def replace(self, values: Mapping[bytes, bytes]) -> None:
        """All keys of the prefix: at first, and after every interruption."""
        ...

    def apply(self, changes: Sequence[Change]) -> None:
        """What changed since; an empty sequence is a sign of life."""
        ...


def retry_seconds(limit: float) -> float:
    """A pause before the next attempt: at most a second and `limit`, and not the same for everybody."""
    return min(1.0, limit) * random.uniform(0.5, 1.0)


async def follow(
    connection: EtcdConnection, prefix: bytes, view: PrefixView, *, silence_seconds: float, outage: Outage
) -> None:
    """Tell `view` about `prefix`; never returns, so cancel it."""
    part = f"watch of {prefix!r}"
    while True:
        try:
            snapshot = await connection.read(prefix)
            view.replace(snapshot.values)
            watch = connection.watch(prefix, snapshot.revision + 1, silence_seconds=silence_seconds)
            async with contextlib.aclosing(watch) as responses:
                async for changes in responses:
                    outage.end(part)
                    view.apply(changes)
        except DiscoveryError as error:
            outage.begin(part, error)
        await asyncio.sleep(retry_seconds(silence_seconds / 4))
