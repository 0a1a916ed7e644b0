"""``/metrics`` of several frontend processes on one port: whichever is asked, the answer is of all.

Each process leaves a snapshot of its metrics in the state directory every second, and the one that is asked adds the
others' to its own. Counters of a process that has ended are kept, or their sums would fall, which Prometheus reads as
a restart. A process holds a lock on a file beside its snapshot: the lock of a dead one is free, however it died. With
no other process alive everything begins anew. Made by `dynamo.frontend.app`, used by `dynamo.frontend.probes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from dynamo.errors import ConfigError
from dynamo.runtime.telemetry import render_metrics

__all__ = ["SharedMetrics"]

logger = logging.getLogger(__name__)

_SNAPSHOT_SECONDS = 1.0
#: Gauges that are parts of one whole. Others say how one process sees something, and get a label with its name.
_SUMMED_GAUGES = "dynamo_frontend_"
_RETIRED_IDS = 100


class _Sample(msgspec.Struct, array_like=True, frozen=True):
    name: str
    labels: dict[str, str]
    value: float


class _Family(msgspec.Struct, array_like=True):
    name: str
    kind: str
    text: str
    samples: list[_Sample]


class _Retired(msgspec.Struct):
    """Counters of processes that have ended."""

    families: list[_Family] = []
    processes: list[str] = []
    """The last ones: a snapshot that could not be removed is not added again."""


_encode = msgspec.msgpack.Encoder().encode
_decode_families = msgspec.msgpack.Decoder(list[_Family]).decode
_decode_retired = msgspec.msgpack.Decoder(_Retired).decode


class SharedMetrics:
    """The metrics of this process and of those beside it.

    Args:
        registry: of this process.
        directory: of all processes on the port.

    Raises:
        ConfigError: the directory cannot be used.
    """

    def __init__(self, registry: CollectorRegistry, directory: Path) -> None:
        self._registry = registry
        self._directory = directory
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._written = b""
        self._task: asyncio.Task[None] | None = None
        try:
            for made in (directory.parent.parent, directory.parent, directory):  # `mode` is that of the last one only
                made.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._alone():
                self._lock = self._take_lock()
                if not self._living_peers():
                    self._path("retired").unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot use {directory} for metrics: {error.strerror}",
                param="state_dir",
                hint="choose a writable --state-dir",
            ) from error

    def start(self) -> None:
        """Begin to leave snapshots."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def render(self) -> bytes:
        """Prometheus' text format. Blocks for a few milliseconds: call it in a thread.

        Raises:
            OSError: the directory cannot be used.
        """
        views = [(self._name, _families(self._registry))]
        with self._alone():
            for name in self._living_peers():
                with contextlib.suppress(FileNotFoundError):  # it has not written one yet
                    views.append((name, _decode_families(self._path(name, ".snapshot").read_bytes())))
            retired = self._retired()
        merged = _merge(retired.families, *(_by_process(families, name) for name, families in views))
        return render_metrics(_Families(merged))

    async def close(self) -> None:
        """Leave the last snapshot to the others."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._leave_snapshot)
        os.close(self._lock)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_SNAPSHOT_SECONDS)
            await asyncio.to_thread(self._leave_snapshot)

    def _leave_snapshot(self) -> None:
        body = _encode(_families(self._registry))
        if body == self._written:
            return
        try:
            self._write(self._path(self._name, ".snapshot"), body)
        except OSError as error:
            logger.warning("other frontends do not see the metrics of this one: %s", error)
        self._written = body

    def _living_peers(self) -> list[str]:
        """Names of the others that live; those that do not are retired. Only within `_alone`."""
        living = []
        for path in self._directory.glob("*.lock"):
            name = path.stem
            if name == self._name:
                continue
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    living.append(name)
                    continue
            self._retire(name)
        return living

    def _retire(self, name: str) -> None:
        snapshot = self._path(name, ".snapshot")
        retired = self._retired()
        if name not in retired.processes and snapshot.exists():
            try:
                families = _decode_families(snapshot.read_bytes())
            except msgspec.MsgspecError as error:
                # Another version's, perhaps. A process that is gone must not keep others from starting.
                logger.warning("the last metrics of frontend %s are lost: %s", name, error)
                families = []
            last = [family for family in families if family.kind != "gauge"]
            retired.families = _merge(retired.families, last)
            retired.processes = [*retired.processes, name][-_RETIRED_IDS:]
            self._write(self._path("retired"), _encode(retired))
        snapshot.unlink(missing_ok=True)
        self._path(name, ".lock").unlink(missing_ok=True)

    def _retired(self) -> _Retired:
        try:
            return _decode_retired(self._path("retired").read_bytes())
        except FileNotFoundError:
            return _Retired()
        except msgspec.MsgspecError as error:
            logger.warning("the metrics of frontends that have ended are lost: %s", error)
            return _Retired()

    def _take_lock(self) -> int:
        lock = os.open(self._path(self._name, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process looks at, joins or leaves the directory."""
        with self._path("directory").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, name: str, suffix: str = "") -> Path:
        return self._directory / f"{name}{suffix}"

    def _write(self, path: Path, body: bytes) -> None:
        # Renamed, so that nobody reads half of it.
        part = path.with_name(f"{path.name}.{self._name}.part")
        part.write_bytes(body)
        part.replace(path)


class _Families(Collector):
    """What `render_metrics` takes."""

    def __init__(self, families: Iterable[_Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Metrics of the client library."""
        for family in self._families:
            metric = Metric(family.name, family.text, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value)
            yield metric


def _families(registry: CollectorRegistry) -> list[_Family]:
    return [
        _Family(
            metric.name,
            metric.type,
            metric.documentation,
            [_Sample(sample.name, sample.labels, sample.value) for sample in metric.samples],
        )
        for metric in registry.collect()
    ]


def _by_process(families: Iterable[_Family], process: str) -> list[_Family]:
    """`families` with the process as a label where a sum over processes would mean nothing."""
    named = []
    for family in families:
        samples = family.samples
        if family.kind == "gauge" and not family.name.startswith(_SUMMED_GAUGES):
            samples = [
                _Sample(sample.name, {**sample.labels, "frontend_process": process}, sample.value) for sample in samples
            ]
        named.append(_Family(family.name, family.kind, family.text, samples))
    return named


def _merge(*views: Iterable[_Family]) -> list[_Family]:
    """Samples with the same name and labels added up, in the order in which they first come."""
    families: dict[str, _Family] = {}
    values: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], _Sample]] = {}
    for family in (family for view in views for family in view):
        families.setdefault(family.name, family)
        known = values.setdefault(family.name, {})
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            known[key] = _added(known.get(key), sample)
    return [_Family(name, family.kind, family.text, list(values[name].values())) for name, family in families.items()]


def _added(known: _Sample | None, sample: _Sample) -> _Sample:
    if known is None:
        return sample
    # When a series began: the earliest of them.
    created = sample.name.endswith("_created")
    value = min(known.value, sample.value) if created else known.value + sample.value
    return _Sample(sample.name, sample.labels, value)
