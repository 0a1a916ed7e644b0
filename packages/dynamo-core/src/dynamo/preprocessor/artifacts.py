"""The small files of a model on their way from worker to frontend: what a worker offers, and where a frontend keeps it.

A model deployment card names files by SHA-256; a worker answers for them from :func:`collect`, and a frontend keeps
them in an :class:`ArtifactCache`, so that it needs no model directory and fetches nothing twice (DESIGN 4.3).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from pathlib import Path

from dynamo.errors import ConfigError, TransportError
from dynamo.preprocessor.model_files import read_model_files
from dynamo.protocols.model_card import Artifact

__all__ = ["ArtifactCache", "artifact_of", "collect"]

#: Room for the text side of a few dozen models.
CACHE_LIMIT_BYTES = 1024 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def artifact_of(data: bytes) -> Artifact:
    """Identity of a file's contents."""
    return Artifact(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def collect(directory: Path | str) -> dict[str, Artifact]:
    """The files of a model directory that a frontend needs and that exist, by name.

    Raises:
        ConfigError: the directory does not exist, or a file is unreadable or too large.
    """
    return {name: artifact_of(data) for name, data in read_model_files(directory).items()}


class ArtifactCache:
    """Artifacts on disk, named by their hash. Several processes may share one directory.

    What is read is verified, what is written appears at once or not at all, and the least recently used files go when
    the total exceeds `limit_bytes`. Calls block on the disk.
    """

    def __init__(self, directory: Path | str, *, limit_bytes: int = CACHE_LIMIT_BYTES) -> None:
        """Raises ConfigError when `directory` cannot be made."""
        self._directory = Path(directory)
        self._limit_bytes = limit_bytes
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the artifact cache {self._directory}: {error.strerror}", hint="give a writable directory"
            ) from error

    def get(self, artifact: Artifact) -> bytes | None:
        """The contents; None when they are not here. A damaged file is removed, and counts as not here."""
        path = self._path(artifact)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"cannot read artifact {path}: {error.strerror}") from error
        if artifact_of(data) != artifact:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # eviction goes by modification time: access times are often switched off
        return data

    def put(self, artifact: Artifact, data: bytes) -> None:
        """Keep `data`, and make room for it.

        Raises:
            TransportError: `data` is not that artifact: it was damaged on the way, another worker may have it whole.
            ConfigError: the disk is full or not writable.
        """
        path = self._path(artifact)
        if artifact_of(data) != artifact:
            raise TransportError(f"artifact {artifact.sha256} arrived damaged ({len(data)} bytes)")
        try:
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".", delete=False) as file:
                partial = Path(file.name)
                try:
                    file.write(data)
                    file.close()
                    partial.replace(path)
                finally:
                    partial.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write artifact {path}: {error.strerror}") from error
        self._evict(keep=path)

    def _path(self, artifact: Artifact) -> Path:
        if not _SHA256.match(artifact.sha256):
            raise ConfigError(f"{artifact.sha256!r} is not a SHA-256 digest: the model deployment card is corrupt")
        return self._directory / artifact.sha256

    def _evict(self, *, keep: Path) -> None:
        files = []
        for path in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit_bytes:
                return
            if path != keep and _SHA256.match(path.name):
                path.unlink(missing_ok=True)
                total -= size
