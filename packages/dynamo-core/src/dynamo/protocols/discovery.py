"""Who serves which endpoint: records, and the backend that keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, NamedTuple, Protocol

import msgspec

from dynamo.protocols.addressing import EndpointAddress, InstanceId
from dynamo.protocols.model_card import ModelDeploymentCard

__all__ = ["Discovery", "DiscoveryEvent", "InstanceRecord"]


class InstanceRecord(msgspec.Struct, omit_defaults=True):
    """One instance of one endpoint."""

    namespace: str
    component: str
    endpoint: str
    instance_id: int
    transports: dict[str, str] = {}
    """Request plane name to address, e.g. ``{"tcp": "127.0.0.1:41234"}``."""
    card: ModelDeploymentCard | None = None
    metadata: dict[str, str] = {}
    schema_version: int = 1

    @property
    def address(self) -> EndpointAddress:
        """The endpoint that this instance serves."""
        return EndpointAddress(self.namespace, self.component, self.endpoint)

    @property
    def id(self) -> InstanceId:
        """The instance's id, typed."""
        return InstanceId(self.instance_id)


class DiscoveryEvent(NamedTuple):
    """One step of a watch.

    ``put`` and ``delete`` carry a record (of a deleted one, address and id are sure); ``synced`` comes once, after the
    records that existed when the watch began.
    """

    kind: Literal["put", "delete", "synced"]
    record: InstanceRecord | None = None


class Discovery(Protocol):
    """A discovery backend. Methods are called on one event loop."""

    async def start(self) -> None:
        """Connect. Raises DiscoveryError when the backend cannot be reached."""
        ...

    async def register(self, record: InstanceRecord) -> None:
        """Publish `record` under a lease that the backend renews in the background, again and again until it holds.

        Registering an id again replaces its record.

        Raises:
            DiscoveryError: the first attempt failed.
        """
        ...

    async def unregister(self, record: InstanceRecord) -> None:
        """Withdraw `record`. Idempotent."""
        ...

    async def list(self, namespace: str | None = None) -> list[InstanceRecord]:
        """Records of one namespace, or all."""
        ...

    def watch(self, namespace: str | None = None) -> AsyncIterator[DiscoveryEvent]:
        """Existing records as ``put``, one ``synced``, then every change, without a lost update.

        An outage of the backend deletes nothing: the last known records stay until the backend says otherwise.
        """
        ...

    async def close(self) -> None:
        """Withdraw what this process registered and disconnect. Idempotent."""
        ...
