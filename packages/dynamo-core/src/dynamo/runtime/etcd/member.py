"""One endpoint of an etcd cluster: a gRPC channel, its stubs, and the token that this process got there.

`aetcd` brings the messages and stubs of etcd's API. Its client class has neither TLS nor failover and hides why a watch
ended, so the calls are made here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from dynamo.errors import DiscoveryError, PluginError
from dynamo.runtime.etcd.target import Endpoint, EtcdTarget

__all__ = ["Member", "Metadata", "Send", "load_rpc"]

T = TypeVar("T")
Metadata: TypeAlias = tuple[tuple[str, str], ...]
#: Makes one call: gets the member, a timeout in seconds and the metadata.
Send: TypeAlias = Callable[["Member", float, Metadata], Awaitable[T]]

_OPTIONS = {
    # Members that return are noticed within a second; gRPC's own choice grows to two minutes.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 1000,
    "grpc.max_reconnect_backoff_ms": 1000,
    # Ends a connection into a network that is gone. etcd drops clients that ping more often than every 5 s.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
    # Above a page of the largest values (see `connection`).
    "grpc.max_receive_message_length": 64 << 20,
    # Two connections of a process share no state, so that one can be closed without the other noticing.
    "grpc.use_local_subchannel_pool": 1,
}
#: What etcd answers when a token ran out, was lost in a restart, or is needed since a moment ago.
_TOKEN_REFUSALS = ("invalid auth token", "revision of auth store is old", "user name is empty")


def load_rpc() -> Any:
    """The module ``aetcd.rpc``.

    Raises:
        PluginError: it is not installed.
    """
    try:
        from aetcd import rpc
    except ImportError as error:
        raise PluginError(
            f"etcd needs a package that is not installed: {error}", hint='pip install "dynamo-core[etcd]"'
        ) from error
    return rpc


class Member:
    """One endpoint; connects when it is first asked, and again whenever the connection is lost."""

    def __init__(self, rpc: Any, endpoint: Endpoint, target: EtcdTarget) -> None:
        self._rpc = rpc
        self._target = target
        self._token: str | None = None
        self._channel = _open(rpc, endpoint, target)
        self.kv = rpc.KVStub(self._channel)
        self.lease = rpc.LeaseStub(self._channel)
        self.watches = rpc.WatchStub(self._channel)

    async def ask(self, send: Send[T], seconds: float) -> T:
        """Make a call as this process's user; with a new token if etcd refuses the one there is.

        Raises:
            AioRpcError: the call, or authentication, failed.
            DiscoveryError: the connection was closed under the call.
        """
        # gRPC reports that as CancelledError, which would look to the caller as if somebody had cancelled it.
        asking = asyncio.ensure_future(self._ask(send, seconds))
        try:
            await asyncio.wait({asking})
        finally:
            asking.cancel()
        if asking.cancelled():
            raise DiscoveryError("the connection was closed")
        return asking.result()

    async def credentials(self, seconds: float) -> Metadata:
        """The metadata that says who we are, if anybody.

        Raises:
            AioRpcError: etcd refuses user or password, or did not answer in time.
        """
        if not self._target.username:
            return ()
        if self._token is None:
            request = self._rpc.AuthenticateRequest(name=self._target.username, password=self._target.password)
            try:
                reply = await self._rpc.AuthStub(self._channel).Authenticate(request, timeout=seconds)
            except self._rpc.AioRpcError as error:
                if "authentication is not enabled" not in str(error.details()):
                    raise
                return ()
            self._token = str(reply.token)
        return (("token", self._token),)

    async def close(self, seconds: float) -> None:
        """Disconnect; calls that are under way may take `seconds` to end."""
        await self._channel.close(seconds)

    async def _ask(self, send: Send[T], seconds: float) -> T:
        try:
            return await send(self, seconds, await self.credentials(seconds))
        except self._rpc.AioRpcError as error:
            refused = any(text in str(error.details()) for text in _TOKEN_REFUSALS)
            if not (refused and self._target.username):
                raise
        self._token = None
        return await send(self, seconds, await self.credentials(seconds))


def _open(rpc: Any, endpoint: Endpoint, target: EtcdTarget) -> Any:
    options = list(_OPTIONS.items())
    if not endpoint.tls:
        return rpc.insecure_channel(endpoint.address, options=options)
    import grpc

    authority, certificate, key = target.certificates
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return rpc.secure_channel(endpoint.address, credentials, options=options)
