"""What a watcher of etcd knows: which key holds which record, and when a key that is gone is believed.

`EtcdDiscovery` has one view for each namespace that is watched.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from dynamo.errors import ConfigError
from dynamo.protocols.addressing import format_instance_id
from dynamo.protocols.discovery import InstanceRecord
from dynamo.runtime.discovery.hub import RecordHub, RecordKey
from dynamo.runtime.etcd.watch import Change

__all__ = ["RecordDecoder", "RecordView", "by_key", "namespace_prefix", "record_key"]

logger = logging.getLogger(__name__)

_PREFIX = "/dynamo/v1/instances/"
#: A record holds a card of at most 64 KiB and little else.
_LIMIT_BYTES = 1024 * 1024
#: Keys that were warned about are remembered, up to here; beyond it nothing is said.
_WARNED_LIMIT = 1024


def namespace_prefix(namespace: str | None) -> bytes:
    """What the keys of one namespace begin with, or of all."""
    return (_PREFIX if namespace is None else f"{_PREFIX}{namespace}/").encode()


def record_key(record: InstanceRecord) -> bytes:
    """``/dynamo/v1/instances/namespace/component/endpoint/id``, the id in 14 hex digits.

    Raises:
        ConfigError: a part of the address is not a valid name, or the id is out of range.
    """
    key = RecordKey.of(record)
    if not 0 <= key.instance_id < 2**53:
        raise ConfigError(f"instance id {key.instance_id} is not between 0 and 2**53 - 1")
    return f"{_PREFIX}{'/'.join(key.address)}/{format_instance_id(key.instance_id)}".encode()


class RecordDecoder:
    """Reads what keys hold; anybody may have written it."""

    def __init__(self) -> None:
        self._warned: set[bytes] = set()

    def decode(self, key: bytes, value: bytes) -> InstanceRecord | None:
        """The record that `key` holds; None, and one warning per key, if it is none."""
        try:
            record = _decode(key, value)
        except ValueError as error:
            if key not in self._warned and len(self._warned) < _WARNED_LIMIT:
                self._warned.add(key)
                logger.warning("ignoring etcd key %.200r: %.500s", key, error)
            return None
        self._warned.discard(key)
        return record


def _decode(key: bytes, value: bytes) -> InstanceRecord:
    if len(value) > _LIMIT_BYTES:
        raise ValueError(f"larger than {_LIMIT_BYTES} bytes")
    try:
        record = msgspec.json.decode(value, type=InstanceRecord)
        expected = record_key(record)
    except (msgspec.DecodeError, RecursionError, ConfigError) as error:
        raise ValueError(str(error)) from error
    if expected != key:
        raise ValueError(f"it holds the record of {expected.decode()}")
    return record


class RecordView:
    """Implements `dynamo.runtime.etcd.follow.PrefixView`; feeds `hub`.

    After etcd was away, or hung, keys are missing although their owners live: their leases ran out, or etcd came back
    without its data. From then on for `settle_seconds` a missing key deletes nothing, so that owners can register
    again; what is still missing after that is gone. Away means: no sign of life for `stale_seconds`, or read anew.
    """

    def __init__(
        self,
        decoder: RecordDecoder,
        *,
        settle_seconds: float,
        stale_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hub = RecordHub()
        self._decoder = decoder
        self._settle_seconds = settle_seconds
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._records: dict[bytes, InstanceRecord] = {}
        self._missing: set[bytes] = set()
        self._heard_at: float | None = None
        self._settled_at = float("-inf")

    @property
    def known(self) -> bool:
        """Whether etcd was ever read."""
        return self._heard_at is not None

    def settling(self) -> list[InstanceRecord]:
        """Records whose keys are missing, and that count all the same."""
        return [self._records[key] for key in self._missing]

    def replace(self, values: Mapping[bytes, bytes]) -> None:
        """See `PrefixView.replace`."""
        missing = self._records.keys() - values.keys()
        self._hear(settle=bool(missing))
        self._missing |= missing
        for key, value in values.items():
            self._put(key, value)
        self._publish()

    def apply(self, changes: Sequence[Change]) -> None:
        """See `PrefixView.apply`."""
        self._hear()
        for key, value in changes:
            if value is not None:
                self._put(key, value)
            elif key in self._records:
                self._missing.add(key)
        self._publish()

    def _hear(self, *, settle: bool = False) -> None:
        now = self._clock()
        if settle or (self._heard_at is not None and now - self._heard_at > self._stale_seconds):
            self._settled_at = now + self._settle_seconds
        self._heard_at = now

    def _put(self, key: bytes, value: bytes) -> None:
        self._missing.discard(key)
        record = self._decoder.decode(key, value)
        if record is not None:  # else a record that was good stays what it was
            self._records[key] = record

    def _publish(self) -> None:
        if self._clock() >= self._settled_at:
            for key in self._missing:
                del self._records[key]
            self._missing.clear()
        self.hub.replace(by_key(self._records.values()))


def by_key(records: Iterable[InstanceRecord]) -> dict[RecordKey, InstanceRecord]:
    """`records`, whose addresses are valid, as a hub holds them."""
    return {RecordKey(record.address, record.instance_id): record for record in records}
