"""A connection to an etcd cluster: the few calls that the runtime makes, at whichever member answers.

A call that no member answers in time fails with a DiscoveryError that names them all and the reason; callers repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple, TypeVar

from dynamo.errors import DiscoveryError, LeaseLost
from dynamo.runtime.etcd.member import Member, Metadata, Send, load_rpc
from dynamo.runtime.etcd.target import EtcdTarget
from dynamo.runtime.etcd.watch import Change, open_watch, responses

__all__ = ["EtcdConnection", "Snapshot"]

T = TypeVar("T")

#: Keys per answer: 32 values of etcd's default limit of 1.5 MiB stay below the message limit.
_PAGE_KEYS = 32
_CLOSE_SECONDS = 0.5
_RETRY_SECONDS = 0.2
_CREDENTIALS_HINT = "check ETCD_USERNAME and ETCD_PASSWORD, and that the user may read and write /dynamo/"


class Snapshot(NamedTuple):
    """All keys with a prefix, at one moment."""

    values: dict[bytes, bytes]
    revision: int
    """Of the whole store; a watch from the next one on misses nothing."""


class EtcdConnection:
    """The cluster `target`. Opens nothing before the first call; usable from one event loop."""

    def __init__(self, target: EtcdTarget, *, call_seconds: float = 5.0) -> None:
        """`call_seconds`: within this time a call is answered or has failed, over all members.

        Raises:
            PluginError: the client library is not installed.
        """
        self._rpc = load_rpc()
        self._target = target
        self._call_seconds = call_seconds
        self._members: dict[int, Member] = {}
        self._current = 0
        self._closed = False

    async def check(self, seconds: float) -> None:
        """Wait until a member answers and accepts this process, for `seconds` at most.

        Raises:
            DiscoveryError: none did, or the credentials are wrong.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        # A linearizable read of nothing: answered only with a quorum, and only to who may ask.
        request = self._rpc.RangeRequest(key=b"/dynamo/", count_only=True)
        while True:
            try:
                await self._ask(lambda m, s, metadata: m.kv.Range(request, timeout=s, metadata=metadata), deadline)
            except self._rpc.AioRpcError as error:
                code = error.code()
                if code is self._rpc.StatusCode.PERMISSION_DENIED:
                    return  # a known user whose rights are narrower than this key
                if code is not self._rpc.StatusCode.UNAVAILABLE or loop.time() + _RETRY_SECONDS > deadline:
                    raise self._explained(error) from error
            else:
                return
            await asyncio.sleep(_RETRY_SECONDS)

    async def read(self, prefix: bytes) -> Snapshot:
        """All keys that begin with `prefix`.

        Raises:
            DiscoveryError: the read failed.
        """
        request = self._rpc.RangeRequest(key=prefix, range_end=_end_of(prefix), limit=_PAGE_KEYS)
        values: dict[bytes, bytes] = {}
        while True:
            reply = await self._call(lambda m, s, metadata: m.kv.Range(request, timeout=s, metadata=metadata))
            values.update((pair.key, pair.value) for pair in reply.kvs)
            # All pages show the revision of the first.
            request.revision = request.revision or reply.header.revision
            if not reply.more:
                return Snapshot(values, request.revision)
            request.key = reply.kvs[-1].key + b"\0"

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        """Set `key`; it lives as long as `lease` (0: until it is deleted).

        Raises:
            LeaseLost: there is no such lease any more.
            DiscoveryError: the write failed, or its answer was lost.
        """
        request = self._rpc.PutRequest(key=key, value=value, lease=lease)
        await self._call(lambda m, s, metadata: m.kv.Put(request, timeout=s, metadata=metadata))

    async def delete(self, key: bytes) -> None:
        """Remove `key` if it is there.

        Raises:
            DiscoveryError: the write failed, or its answer was lost.
        """
        request = self._rpc.DeleteRangeRequest(key=key)
        await self._call(lambda m, s, metadata: m.kv.DeleteRange(request, timeout=s, metadata=metadata))

    async def grant(self, seconds: int) -> int:
        """A new lease that runs out `seconds` after it was last renewed.

        Raises:
            DiscoveryError: etcd gave none.
        """
        request = self._rpc.LeaseGrantRequest(TTL=seconds)
        reply = await self._call(lambda m, s, metadata: m.lease.LeaseGrant(request, timeout=s, metadata=metadata))
        return int(reply.ID)

    async def renew(self, lease: int) -> None:
        """Let `lease` last for its full time from now.

        Raises:
            LeaseLost: it ran out, or etcd lost it.
            DiscoveryError: nobody answered.
        """
        request = self._rpc.LeaseKeepAliveRequest(ID=lease)

        async def send(member: Member, seconds: float, metadata: Metadata) -> Any:
            call = member.lease.LeaseKeepAlive([request], timeout=seconds, metadata=metadata)
            try:
                return await call.read()
            finally:
                call.cancel()

        reply = await self._call(send)
        if not isinstance(reply, self._rpc.LeaseKeepAliveResponse):
            raise DiscoveryError(f"etcd at {self._target}: it ended the call without an answer")
        if reply.TTL <= 0:
            raise LeaseLost(f"etcd at {self._target}: the lease ran out")

    async def revoke(self, lease: int) -> None:
        """End `lease` and remove its keys.

        Raises:
            LeaseLost: it was gone already.
            DiscoveryError: nobody answered.
        """
        request = self._rpc.LeaseRevokeRequest(ID=lease)
        await self._call(lambda m, s, metadata: m.lease.LeaseRevoke(request, timeout=s, metadata=metadata))

    async def watch(
        self, prefix: bytes, revision: int, *, silence_seconds: float
    ) -> AsyncGenerator[list[Change], None]:
        """Every change to keys with `prefix` from `revision` on, in order.

        The first list is empty: the watch stands. Later empty ones are signs of life: etcd is asked for one after
        half of `silence_seconds` without news, and has the other half to answer. The generator ends when etcd has
        compacted `revision` away: then read again. Close it when done.

        Raises:
            DiscoveryError: the member was lost, fell silent, or refuses.
        """
        member = self._member()
        call = None
        try:
            call = await member.ask(
                lambda m, s, metadata: open_watch(self._rpc, m, metadata, prefix, _end_of(prefix), revision, s),
                silence_seconds,
            )
            async for changes in responses(self._rpc, call, silence_seconds):
                yield changes
        except (self._rpc.AioRpcError, DiscoveryError) as error:
            self._move_on(member)
            raise self._explained(error) from error
        finally:
            if call is not None:
                call.cancel()

    async def close(self) -> None:
        """Disconnect. Idempotent; later calls fail."""
        self._closed = True
        members, self._members = [*self._members.values()], {}
        for member in members:
            await member.close(_CLOSE_SECONDS)

    async def _call(self, send: Send[T]) -> T:
        deadline = asyncio.get_running_loop().time() + self._call_seconds
        try:
            return await self._ask(send, deadline)
        except (self._rpc.AioRpcError, DiscoveryError) as error:
            raise self._explained(error) from error

    async def _ask(self, send: Send[T], deadline: float) -> T:
        """Ask the current member, then each of the others while nobody answers."""
        loop = asyncio.get_running_loop()
        failure: Exception | None = None
        for left in range(len(self._target.endpoints), 0, -1):
            member = self._member()
            try:
                return await member.ask(send, max(0.1, (deadline - loop.time()) / left))
            except self._rpc.AioRpcError as error:
                if error.code() not in (self._rpc.StatusCode.UNAVAILABLE, self._rpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                failure = error
                self._move_on(member)
        raise failure or AssertionError("a target has an endpoint")

    def _member(self) -> Member:
        if self._closed:
            raise DiscoveryError("the connection is closed")
        if self._current not in self._members:
            endpoint = self._target.endpoints[self._current]
            self._members[self._current] = Member(self._rpc, endpoint, self._target)
        return self._members[self._current]

    def _move_on(self, failed: Member) -> None:
        """Try the next member from now on, unless another task has moved on already."""
        if self._members.get(self._current) is failed:
            self._current = (self._current + 1) % len(self._target.endpoints)

    def _explained(self, error: Any) -> DiscoveryError:
        if isinstance(error, DiscoveryError):
            return DiscoveryError(f"etcd at {self._target}: {error.message}", hint=error.hint)
        status, code, details = self._rpc.StatusCode, error.code(), str(error.details())
        if "requested lease not found" in details:
            return LeaseLost(f"etcd at {self._target}: the lease ran out")
        if code is status.DEADLINE_EXCEEDED:
            details = "no answer in time"
        hint = None
        if code in (status.PERMISSION_DENIED, status.UNAUTHENTICATED) or "user" in details:
            hint = _CREDENTIALS_HINT
        elif code in (status.UNAVAILABLE, status.DEADLINE_EXCEEDED):
            hint = "check that etcd runs and that ETCD_ENDPOINTS names it"
        return DiscoveryError(f"etcd at {self._target}: {details}", hint=hint)


def _end_of(prefix: bytes) -> bytes:
    """The end of the range of keys that begin with `prefix`, which must not end in 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
