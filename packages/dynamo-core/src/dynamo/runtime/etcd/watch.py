"""The stream of one watch of etcd: what it brings, and whether it still lives. Used by `connection` only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from dynamo.errors import DiscoveryError
from dynamo.runtime.etcd.member import Member, Metadata

__all__ = ["Change", "open_watch", "responses"]

#: etcd ends the watch when its member is cut off from the others, instead of going on without news.
_REQUIRE_LEADER = ("hasleader", "true")


class Change(NamedTuple):
    """What happened to one key."""

    key: bytes
    value: bytes | None
    """None: it was deleted."""


async def open_watch(
    rpc: Any, member: Member, credentials: Metadata, start: bytes, end: bytes, revision: int, seconds: float
) -> Any:
    """A call that watches the keys from `start` to before `end`, from `revision` on.

    Raises:
        DiscoveryError: the request could not be sent within `seconds`.
    """
    call = member.watches.Watch(metadata=(*credentials, _REQUIRE_LEADER))
    create = rpc.WatchCreateRequest(key=start, range_end=end, start_revision=revision, fragment=True)
    try:
        await _write(call, rpc.WatchRequest(create_request=create), seconds)
    except BaseException:
        call.cancel()
        raise
    return call


async def responses(rpc: Any, call: Any, silence_seconds: float) -> AsyncGenerator[list[Change], None]:
    """What `call` brings; see `EtcdConnection.watch`.

    Raises:
        AioRpcError: the connection was lost.
        DiscoveryError: etcd ended the watch, or nothing came for `silence_seconds` although it was asked.
    """
    while True:
        response = await _next(rpc, call, silence_seconds)
        if response.compact_revision:
            return
        if response.canceled:
            raise DiscoveryError(f"it ended the watch: {response.cancel_reason or 'no reason given'}")
        yield [
            Change(event.kv.key, None if event.type == rpc.Event.DELETE else event.kv.value)
            for event in response.events
        ]


async def _next(rpc: Any, call: Any, silence_seconds: float) -> Any:
    # Not asyncio.wait_for: cancelling a read ends the whole call.
    reading = asyncio.ensure_future(call.read())
    try:
        await asyncio.wait({reading}, timeout=silence_seconds / 2)
        if not reading.done():
            await _write(call, rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()), silence_seconds / 2)
            await asyncio.wait({reading}, timeout=silence_seconds / 2)
        if not reading.done():
            raise DiscoveryError(f"no sign of life for {silence_seconds:g} s")
    finally:
        reading.cancel()
    response = None if reading.cancelled() else reading.result()
    if not isinstance(response, rpc.WatchResponse):
        raise DiscoveryError("it ended the watch")
    return response


async def _write(call: Any, request: Any, seconds: float) -> None:
    writing = asyncio.ensure_future(call.write(request))
    try:
        await asyncio.wait({writing}, timeout=seconds)
        if not writing.done():
            raise DiscoveryError(f"no connection within {seconds:g} s")
    finally:
        writing.cancel()
    if not writing.cancelled():
        writing.exception()  # why a write failed, the next read says better
