"""Gets a model's text files from a worker, by hash, through a cache on disk."""

from __future__ import annotations

import asyncio
import logging
import uuid

from dynamo.errors import ConfigError, StreamIncomplete
from dynamo.preprocessor import ArtifactCache, TextModel
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.model_card import ARTIFACTS_ENDPOINT, Artifact, ArtifactRequest, ModelDeploymentCard
from dynamo.protocols.planes import RequestPlane
from dynamo.runtime.client import encode_request, stream_items
from dynamo.runtime.context import Context

__all__ = ["ArtifactFetcher"]

logger = logging.getLogger(__name__)


class ArtifactFetcher:
    """Makes the text side of a model out of its card."""

    def __init__(self, plane: RequestPlane, cache: ArtifactCache) -> None:
        self._plane = plane
        self._cache = cache

    async def fetch(self, worker: InstanceRecord, card: ModelDeploymentCard) -> TextModel:
        """Tokenizer and template of `card`, from the cache or from `worker`.

        Raises:
            DynamoError: the worker cannot be reached, or what it sent is not what the card promised.
        """
        files = {}
        for name, artifact in card.artifacts.items():
            data = await asyncio.to_thread(self._cache.get, artifact)
            if data is None:
                data = await self._download(worker, name, artifact)
            files[name] = data
        return await asyncio.to_thread(TextModel.from_artifacts, files, name=card.model)

    async def _download(self, worker: InstanceRecord, name: str, artifact: Artifact) -> bytes:
        source = InstanceRecord(
            worker.namespace, worker.component, ARTIFACTS_ENDPOINT, worker.instance_id, worker.transports
        )
        context = Context(f"artifact-{uuid.uuid4().hex}")
        parts = []
        received = 0
        request = encode_request(ArtifactRequest(artifact.sha256))
        async for part in stream_items(self._plane, source, request, context, bytes):
            parts.append(part)
            received += len(part)
            if received > artifact.size_bytes:
                context.cancel()
                raise StreamIncomplete(f"{name} is longer than the {artifact.size_bytes} bytes of its card")
        data = b"".join(parts)
        try:
            await asyncio.to_thread(self._cache.put, artifact, data)
        except ConfigError as error:
            # It is verified all the same: a full disk costs the next frontend a download, not this one its model.
            logger.warning("%s", error.message)
        logger.info("fetched %s (%d bytes)", name, len(data))
        return data
