"""Gives a model's text files to frontends, by hash, over the request plane: a frontend needs no model directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from dynamo.errors import InvalidRequest
from dynamo.protocols.context import RequestContext
from dynamo.protocols.model_card import Artifact, ArtifactRequest

__all__ = ["CHUNK_BYTES", "ArtifactServer"]

CHUNK_BYTES = 1 << 20


class ArtifactServer:
    """Serves the files that the model deployment card names, and nothing else."""

    def __init__(self, directory: Path, artifacts: Mapping[str, Artifact]) -> None:
        self._paths = {artifact.sha256: directory / name for name, artifact in artifacts.items()}

    async def serve(self, request: ArtifactRequest, context: RequestContext) -> AsyncIterator[bytes]:
        """The file with ``request.sha256``, in pieces.

        Raises:
            InvalidRequest: the card has no such file, or it is gone.
        """
        path = self._paths.get(request.sha256)
        if path is None:
            raise InvalidRequest(f"no artifact with sha256 {request.sha256!r}")
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise InvalidRequest(f"artifact {path.name} cannot be read: {error.strerror}") from error
        for start in range(0, len(data), CHUNK_BYTES):
            if context.cancelled:
                return
            yield data[start : start + CHUNK_BYTES]
