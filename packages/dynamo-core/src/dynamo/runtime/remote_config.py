"""Runtime configuration in etcd: parameters that an operator changes while processes run.

A section is the JSON object at ``/dynamo/config/NAMESPACE/SECTION``; its keys are those of the section's settings class
and are laid over the values that the process started with::

    config = RemoteConfig(settings.discovery_url(), settings.namespace)
    config.watch("router", RouterSettings, router.configure, base=router_settings)
    config.start()

An outage of etcd changes nothing: what was last known stays, even if etcd comes back without it. To undo a change,
delete the key while etcd runs, or write ``{}``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from dynamo.config import Settings, load_settings
from dynamo.errors import ConfigError
from dynamo.runtime.etcd.connection import EtcdConnection
from dynamo.runtime.etcd.follow import follow
from dynamo.runtime.etcd.outage import Outage
from dynamo.runtime.etcd.settings import EtcdSettings
from dynamo.runtime.etcd.target import EtcdTarget
from dynamo.runtime.etcd.watch import Change

__all__ = ["RemoteConfig"]

S = TypeVar("S", bound=Settings)

logger = logging.getLogger(__name__)

_LIMIT_BYTES = 64 * 1024
_SILENCE_SECONDS = 10.0


class RemoteConfig:
    """The sections of one namespace. Methods are called on one event loop."""

    def __init__(self, url: str, namespace: str, *, settings: EtcdSettings | None = None) -> None:
        """`url` as for etcd discovery; `settings` None reads the environment.

        Raises:
            ConfigError: the URL, the environment or a certificate file is wrong.
            PluginError: the client library is not installed.
        """
        settings = settings or load_settings(EtcdSettings, environ=os.environ)
        self._connection = EtcdConnection(EtcdTarget.parse(url, settings))
        self._prefix = f"/dynamo/config/{namespace}/".encode()
        self._values: dict[bytes, bytes] = {}
        self._listeners: dict[bytes, list[Callable[[bytes | None], None]]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow etcd, in the background; an etcd that is away now is waited for."""
        outage = Outage("the last known configuration stays in use")
        following = follow(self._connection, self._prefix, self, silence_seconds=_SILENCE_SECONDS, outage=outage)
        self._task = asyncio.create_task(following, name="etcd configuration")

    async def close(self) -> None:
        """Stop. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._connection.close()

    def watch(
        self, section: str, settings_class: type[S], callback: Callable[[S], None], *, base: S | None = None
    ) -> None:
        """Call `callback` with the settings of `section`: soon, if etcd is known to hold some, and at every change.

        What etcd holds is laid over `base` (None: the defaults). Values that `settings_class` refuses are logged and
        ignored, all of that change. A deleted key gives `base`. What `callback` raises goes to the event loop's
        exception handler.
        """
        key = self._prefix + section.encode()
        unchanged = base or load_settings(settings_class)

        def tell(value: bytes | None) -> None:
            try:
                settings = unchanged if value is None else _overlay(unchanged, value)
            except ConfigError as error:
                logger.warning("ignoring etcd key %s: %.500s", key.decode(), error)
            else:
                asyncio.get_running_loop().call_soon(callback, settings)

        self._listeners.setdefault(key, []).append(tell)
        if key in self._values:
            tell(self._values[key])

    def replace(self, values: Mapping[bytes, bytes]) -> None:
        """See `dynamo.runtime.etcd.follow.PrefixView`; what is missing is kept."""
        self.apply([Change(key, value) for key, value in values.items()])

    def apply(self, changes: Sequence[Change]) -> None:
        """See `dynamo.runtime.etcd.follow.PrefixView`."""
        for key, value in changes:
            if value == self._values.get(key):
                continue
            if value is None:
                del self._values[key]
            else:
                self._values[key] = value
            for tell in self._listeners.get(key, []):
                tell(value)


def _overlay(base: S, value: bytes) -> S:
    """`base` with the fields that the JSON object `value` names set.

    Raises:
        ConfigError: it is too large, not an object, names an unknown field or has a wrong value.
    """
    if len(value) > _LIMIT_BYTES:
        raise ConfigError(f"larger than {_LIMIT_BYTES} bytes")
    try:
        fields: dict[str, Any] = msgspec.json.decode(value, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"not a JSON object: {error}") from error
    return load_settings(type(base), file={**base.model_dump(), **fields})
