"""Discovery through etcd: processes on any number of machines, each under a lease, watching a prefix.

Keys are ``/dynamo/v1/instances/NAMESPACE/COMPONENT/ENDPOINT/ID``, values are records as JSON. An outage of etcd stops
nobody: instances that were known stay in use, registrations are repeated until they hold.
"""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import AsyncIterator

import msgspec

from dynamo.config import load_settings
from dynamo.errors import DiscoveryError
from dynamo.protocols.discovery import DiscoveryEvent, InstanceRecord
from dynamo.runtime.discovery.etcd_lease import LeasedKeys
from dynamo.runtime.discovery.etcd_records import RecordDecoder, RecordView, by_key, namespace_prefix, record_key
from dynamo.runtime.discovery.hub import in_namespace
from dynamo.runtime.etcd.connection import EtcdConnection
from dynamo.runtime.etcd.follow import follow
from dynamo.runtime.etcd.outage import Outage
from dynamo.runtime.etcd.settings import EtcdSettings
from dynamo.runtime.etcd.target import EtcdTarget

__all__ = ["EtcdDiscovery"]


class EtcdDiscovery:
    """Implements `dynamo.protocols.discovery.Discovery` on ``etcd://host:port,host:port``.

    Nothing after the scheme means ``ETCD_ENDPOINTS``, or localhost. Whatever a key holds is decoded into
    `InstanceRecord` or ignored.
    """

    def __init__(self, url: str, *, settings: EtcdSettings | None = None) -> None:
        """`settings` None reads the environment.

        Raises:
            ConfigError: the URL, the environment or a certificate file is wrong.
            PluginError: the client library is not installed.
        """
        self._settings = settings or load_settings(EtcdSettings, environ=os.environ)
        lease_seconds = self._settings.lease_seconds
        outage = Outage("known instances stay in use, and registrations are repeated until they hold")
        self._connection = EtcdConnection(EtcdTarget.parse(url, self._settings), call_seconds=min(5.0, lease_seconds))
        self._outage = outage
        self._own = LeasedKeys(self._connection, lease_seconds, outage)
        self._decoder = RecordDecoder()
        self._views: dict[str | None, RecordView] = {}
        self._tasks: builtins.list[asyncio.Task[None]] = []
        self._closed = False

    async def start(self) -> None:
        """See `Discovery.start`.

        Raises:
            DiscoveryError: no endpoint answered in time, or the user is refused.
        """
        await self._connection.check(self._settings.startup_seconds)

    async def register(self, record: InstanceRecord) -> None:
        """See `Discovery.register`."""
        if self._closed:
            raise DiscoveryError("etcd discovery is closed")
        await self._own.put(record_key(record), msgspec.json.encode(record))

    async def unregister(self, record: InstanceRecord) -> None:
        """See `Discovery.unregister`."""
        if not self._closed:
            await self._own.remove(record_key(record))

    async def list(self, namespace: str | None = None) -> builtins.list[InstanceRecord]:
        """See `Discovery.list`; if etcd cannot be reached, what a watch of `namespace` knows.

        Raises:
            DiscoveryError: it cannot be reached, and nobody watches.
        """
        if self._closed:
            raise DiscoveryError("etcd discovery is closed")
        view = self._views.get(namespace)
        try:
            snapshot = await self._connection.read(namespace_prefix(namespace))
        except DiscoveryError:
            if view is None or not view.known:
                raise
            return [*in_namespace(view.hub.records, namespace).values()]
        decoded = [self._decoder.decode(*item) for item in snapshot.values.items()]
        settling = view.settling() if view else []
        records = by_key([*settling, *(record for record in decoded if record is not None)])
        return [*in_namespace(records, namespace).values()]

    async def watch(self, namespace: str | None = None) -> AsyncIterator[DiscoveryEvent]:
        """See `Discovery.watch`; ends when this instance is closed."""
        async for event in self._view(namespace).hub.watch(namespace, lambda: self._closed):
            yield event

    async def close(self) -> None:
        """See `Discovery.close`."""
        if self._closed:
            return
        self._closed = True
        for view in self._views.values():
            view.hub.wake()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._own.close()
        await self._connection.close()

    def _view(self, namespace: str | None) -> RecordView:
        """What is known of `namespace`, followed from the first call on."""
        view = self._views.get(namespace)
        if view is None:
            lease_seconds = self._settings.lease_seconds
            # Owners renew after a third of their lease and notice that it is gone; etcd must not have been silent for
            # longer than half of one, else leases may have run out whose owners live.
            view = RecordView(self._decoder, settle_seconds=lease_seconds, stale_seconds=lease_seconds / 2)
            self._views[namespace] = view
            if not self._closed:
                following = follow(
                    self._connection,
                    namespace_prefix(namespace),
                    view,
                    silence_seconds=lease_seconds / 2,
                    outage=self._outage,
                )
                self._tasks.append(asyncio.create_task(following, name=f"etcd watch of {namespace or 'everything'}"))
        return view
