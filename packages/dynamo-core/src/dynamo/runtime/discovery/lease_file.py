"""The files of `FileDiscovery`: one JSON file per registered record, its modification time the heartbeat.

A lease file is named after its record, so that a reader can tell a misplaced file, and is only ever replaced whole.
All functions block, for microseconds on a local file system; `FileDiscovery` calls them on a thread of its own.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from dynamo.errors import ConfigError, DiscoveryError
from dynamo.protocols.addressing import format_instance_id
from dynamo.protocols.discovery import InstanceRecord
from dynamo.runtime.discovery.hub import RecordKey

__all__ = [
    "FileIdentity",
    "Lease",
    "file_name",
    "prepare_directory",
    "read_lease",
    "sweep_temporaries",
    "touch",
    "write_lease",
]

#: A card is at most 64 KiB; base64 and JSON escapes cannot make it this large.
_LIMIT_BYTES = 1024 * 1024
_TEMPORARY = re.compile(r"\..*\.tmp\Z")
_STALE_TEMPORARY_SECONDS = 60.0


class Lease(msgspec.Struct, frozen=True):
    """The content of a lease file."""

    record: InstanceRecord
    host: str
    """`process.host_identity` of the owner."""
    pid: Annotated[int, msgspec.Meta(gt=0, le=2**31 - 1)]
    process_start: str
    seconds: Annotated[float, msgspec.Meta(gt=0, le=86400)]
    """Without a heartbeat for this long the record is gone."""


class FileIdentity(NamedTuple):
    """Tells one content of a path from another without reading it."""

    inode: int
    modified_ns: int
    size_bytes: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """The identity that `status` shows."""
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


def file_name(record: InstanceRecord) -> str:
    """``namespace.component.endpoint.id.json``; unambiguous, since no part holds a dot.

    Raises:
        ConfigError: a part of the address is not a valid name.
    """
    key = RecordKey.of(record)
    if not 0 <= key.instance_id < 2**53:
        raise ConfigError(f"instance id {key.instance_id} is not between 0 and 2**53 - 1")
    return f"{'.'.join(key.address)}.{format_instance_id(key.instance_id)}.json"


def prepare_directory(directory: Path) -> None:
    """Make `directory` if it is missing and check that only this user can write to it.

    Raises:
        DiscoveryError: it cannot be made, or somebody else can write to it.
    """
    try:
        for missing in [path for path in reversed(directory.parents) if not path.exists()]:
            missing.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise DiscoveryError(
            f"cannot use discovery directory {directory}: {error.strerror}",
            hint="choose a directory with DYN_STATE_DIR or --discovery-backend file:///directory",
        ) from error
    if status.st_uid != os.geteuid():
        raise DiscoveryError(
            f"discovery directory {directory} belongs to user {status.st_uid}, this process runs as {os.geteuid()}",
            hint="choose another with DYN_STATE_DIR, or run all processes of a deployment as one user",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DiscoveryError(
            f"other users can write to discovery directory {directory} (mode {stat.S_IMODE(status.st_mode):o})",
            hint=f"chmod 700 {directory}",
        )


def sweep_temporaries(directory: Path) -> None:
    """Remove what processes left behind that died while they wrote."""
    oldest = time.time() - _STALE_TEMPORARY_SECONDS
    for path in directory.iterdir():
        if _TEMPORARY.match(path.name) and path.lstat().st_mtime < oldest:
            path.unlink(missing_ok=True)


def write_lease(directory: Path, name: str, data: bytes) -> FileIdentity:
    """Put `data`, an encoded `Lease`, in place, whole or not at all, readable by this user only.

    Raises:
        DiscoveryError: the directory cannot be used.
        OSError: the file cannot be written, e.g. because the disk is full.
    """
    prepare_directory(directory)
    temporary = directory / f".{name}.{secrets.token_hex(4)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # The kernel's own time stamps tick every few milliseconds: too coarse to tell two contents apart.
            now = time.time_ns()
            os.utime(file.fileno(), ns=(now, now))
            status = os.fstat(file.fileno())
        temporary.replace(directory / name)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return FileIdentity.of(status)


def touch(path: Path, written: FileIdentity) -> FileIdentity | None:
    """Renew the heartbeat of the file that has the identity `written`; None if another or no file is there.

    Raises:
        OSError: the directory cannot be reached, or the time not be set.
    """
    try:
        if FileIdentity.of(path.lstat()) != written:
            return None
        now = time.time_ns()
        os.utime(path, ns=(now, now), follow_symlinks=False)
        return FileIdentity.of(path.lstat())
    except FileNotFoundError:
        return None


def read_lease(path: Path) -> Lease:
    """Read and validate one lease file.

    Raises:
        ValueError: it is not a regular file, too large, not a lease, or another record's.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        data = file.read(_LIMIT_BYTES + 1)
    if len(data) > _LIMIT_BYTES:
        raise ValueError(f"larger than {_LIMIT_BYTES} bytes")
    try:
        lease = msgspec.json.decode(data, type=Lease)
        expected = file_name(lease.record)
    except (msgspec.DecodeError, RecursionError, ConfigError) as error:
        raise ValueError(str(error)) from error
    if expected != path.name:
        raise ValueError(f"it holds the record of {expected}")
    return lease
