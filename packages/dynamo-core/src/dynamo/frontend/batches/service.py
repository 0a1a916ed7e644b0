"""Puts files and batches together for one frontend process: their store, their routes, the work on them."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from dynamo.frontend.batches.claims import BatchClaims, BatchLimits
from dynamo.frontend.batches.endpoint import Batches
from dynamo.frontend.batches.input import InputLimits
from dynamo.frontend.batches.line import LineCaller
from dynamo.frontend.batches.model_names import MODEL_NAMES_SCHEMA, ModelNames
from dynamo.frontend.batches.request import ENDPOINTS, BatchRequest
from dynamo.frontend.batches.run import Workshop
from dynamo.frontend.batches.table import BATCHES_SCHEMA, BatchTable
from dynamo.frontend.database import Database
from dynamo.frontend.files import Files, FileSpace
from dynamo.frontend.files.space import FILES_SCHEMA
from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.models import ServedModels
from dynamo.frontend.routes import Route
from dynamo.frontend.security import ANONYMOUS, Identity, Security
from dynamo.frontend.settings import FrontendSettings

__all__ = ["BatchService"]

_OPEN_BATCHES, _OPEN_BATCHES_OF_OWNER = 1000, 250
_DAY_SECONDS = 24 * 3600


class BatchService:
    """Made by `dynamo.frontend.app`, unless files are switched off.

    Raises:
        ConfigError: the state directory cannot be used.
    """

    def __init__(
        self,
        settings: FrontendSettings,
        directory: Path,
        models: ServedModels,
        metrics: FrontendMetrics,
        security: Security | None,
    ) -> None:
        self._settings = settings
        self._models = models
        self._security = security
        self._database = Database(
            directory / "batches.sqlite",
            FILES_SCHEMA + BATCHES_SCHEMA + MODEL_NAMES_SCHEMA,
            what="files and batches",
            hint="choose a writable --state-dir, or --file-store-mib 0 to serve no files and batches",
        )
        self._space = FileSpace(self._database, directory / "files", settings.max_files, settings.file_store_mib << 20)
        holder = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._table = BatchTable(
            self._database,
            holder,
            max_open=_OPEN_BATCHES,
            max_own=_OPEN_BATCHES_OF_OWNER,
            keyed=security is not None,
        )
        self._names = ModelNames(self._database, models.announced_names)
        self._files = Files(self._space, metrics, settings.file_expiry_days)
        self._batches = Batches(self._table, self._names, self._space, metrics, self._wake, strict=settings.strict)
        self._claims: BatchClaims | None = None

    def routes(self) -> list[Route]:
        """Routes of files and batches."""
        files, batches = self._files, self._batches
        file, batch = "/v1/files/{file}", "/v1/batches/{batch}"
        return [
            Route("POST", "/v1/files", files.create, "Upload a file.", form=True),
            Route("GET", "/v1/files", files.every, "Files."),
            Route("GET", file, files.one, "One file."),
            Route("GET", f"{file}/content", files.content, "What it holds.", response="application/octet-stream"),
            Route("DELETE", file, files.delete, "Remove a file."),
            Route("POST", "/v1/batches", batches.create, "Answer the requests of a file.", request=BatchRequest),
            Route("GET", "/v1/batches", batches.every, "Batches, newest first."),
            Route("GET", batch, batches.one, "How a batch is doing."),
            Route("POST", f"{batch}/cancel", batches.cancel, "End a batch early."),
        ]

    def start(self, routes: Sequence[Route]) -> None:
        """Begin to work on batches; `routes` have the handlers that answer their requests."""
        settings = self._settings
        caller = LineCaller(
            {route.path: route for route in routes if route.path in ENDPOINTS and route.method == "POST"},
            self._models.crowded,
            settings.batch_priority,
            settings.batch_concurrency,
            time.monotonic() + settings.batch_model_wait_seconds,
        )
        expiry = settings.file_expiry_days * _DAY_SECONDS
        shop = Workshop(
            self._table,
            self._space,
            caller,
            InputLimits(settings.batch_max_requests, settings.http_body_limit_mib << 20),
            settings.batch_concurrency,
            expiry,
            self._models.knows,
            self._names,
        )
        self._claims = BatchClaims(shop, BatchLimits(settings.batch_lease_seconds, expiry), self._identity_of)
        self._claims.start()

    async def stop_work(self) -> None:
        """Leave batches to other processes; their clients are still served."""
        if self._claims is not None:
            await self._claims.close()
            self._claims = None

    async def close(self) -> None:
        """Let what was begun end."""
        await self.stop_work()
        await self._files.close()
        await self._batches.close()
        await self._database.close()

    def _wake(self) -> None:
        if self._claims is not None:
            self._claims.wake()

    def _identity_of(self, owner: str) -> Identity | None:
        return ANONYMOUS if self._security is None else self._security.unmetered(owner)
