"""The keys that this process keeps in etcd, all under one lease, put right again until they are as they should be."""

from __future__ import annotations

import asyncio
import logging

from dynamo.errors import DiscoveryError, LeaseLost
from dynamo.runtime.etcd.connection import EtcdConnection
from dynamo.runtime.etcd.follow import retry_seconds
from dynamo.runtime.etcd.outage import Outage

__all__ = ["LeasedKeys"]

logger = logging.getLogger(__name__)

_PART = "registration"


class LeasedKeys:
    """What `EtcdDiscovery` registered; renewed in the background from the first key to :meth:`close`."""

    def __init__(self, connection: EtcdConnection, seconds: int, outage: Outage) -> None:
        """`seconds`: without a renewal for this long etcd removes the keys."""
        self._connection = connection
        self._seconds = seconds
        self._outage = outage
        self._values: dict[bytes, bytes] = {}
        #: Keys that etcd may hold otherwise: a write failed, its answer was lost, or the lease ran out.
        self._unsure: set[bytes] = set()
        self._lease: int | None = None
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def put(self, key: bytes, value: bytes) -> None:
        """Set `key`, and keep it.

        Raises:
            DiscoveryError: this attempt failed; what was kept before is kept on.
        """
        self._ensure_renewing()
        async with self._lock:
            before = self._values.get(key)
            self._values[key] = value
            self._unsure.add(key)
            try:
                await self._settle()
            except BaseException:
                # The write may have arrived all the same: the key stays unsure, and the next renewal sets it right.
                if self._values.get(key) is value:  # else it was removed meanwhile
                    self._values.pop(key)
                    self._values.update({} if before is None else {key: before})
                raise

    async def remove(self, key: bytes) -> None:
        """Remove `key`; in the background if etcd cannot be reached now."""
        self._ensure_renewing()
        self._values.pop(key, None)
        self._unsure.add(key)
        if self._outage.affects(_PART):  # another attempt would only make the caller, who leaves, wait
            return
        try:
            async with self._lock:
                await self._settle()
        except DiscoveryError as error:
            self._outage.begin(_PART, error)

    async def close(self) -> None:
        """End the lease, and with it all keys. If etcd cannot be reached, it runs out by itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._lease is None:
            return
        try:
            await self._connection.revoke(self._lease)
        except LeaseLost:
            logger.debug("the lease had run out")
        except DiscoveryError as error:
            logger.warning("%s; the registration runs out in %d s", error.message, self._seconds)

    def _ensure_renewing(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._keep_renewing(), name="etcd registration")

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(retry_seconds(self._seconds / 4) if self._outage.affects(_PART) else self._seconds / 3)
            try:
                async with self._lock:
                    await self._settle()
            except DiscoveryError as error:
                self._outage.begin(_PART, error)
            else:
                self._outage.end(_PART)

    async def _settle(self) -> None:
        """Renew the lease, or take another, and write what is unsure."""
        if self._lease is not None:
            try:
                await self._connection.renew(self._lease)
            except LeaseLost:
                self._lease = None
                self._unsure |= self._values.keys()
        if self._lease is None and self._values:
            self._lease = await self._connection.grant(self._seconds)
        for key in [*self._unsure]:
            value = self._values.get(key)
            if value is None:
                await self._connection.delete(key)
            elif self._lease is not None:
                await self._connection.put(key, value, self._lease)
            if self._values.get(key) is value:  # else it was removed meanwhile
                self._unsure.discard(key)
