"""Route handlers of ``/v1/files``."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any
from urllib.parse import parse_qs

from dynamo.errors import EngineError, InvalidRequest, Overloaded, RateLimited
from dynamo.frontend.calls import Calls
from dynamo.frontend.files.record import FileRecord, expiry_seconds, new_file_id
from dynamo.frontend.files.space import FileSpace, Reservation
from dynamo.frontend.files.upload import receive
from dynamo.frontend.listing import Page, list_body
from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.security import current_identity
from dynamo.runtime.http import Exchange

__all__ = ["Files"]

#: Each holds up to 2 MiB of memory.
_UPLOADS = 8
#: One key must leave room for others.
_UPLOADS_PER_KEY = 4
_PIECE_BYTES = 256 << 10
_LIST_LIMIT = 10_000


class Files:
    """The route handlers. Files expire after `expiry_days` unless their clients say something else."""

    def __init__(self, space: FileSpace, metrics: FrontendMetrics, expiry_days: float) -> None:
        self._space = space
        self._expiry_seconds = expiry_days * 24 * 3600
        self._calls = Calls(metrics, "files")
        self._uploads = 0
        self._uploads_by_key: Counter[str] = Counter()

    def create(self, exchange: Exchange) -> None:
        """Take an upload. Called when the head of the request is there."""
        if self._uploads >= _UPLOADS:
            exchange.respond_error(Overloaded(f"{self._uploads} uploads are open already", retry_after_seconds=5))
            return
        key = current_identity().name
        if key and self._uploads_by_key[key] >= _UPLOADS_PER_KEY:
            exchange.respond_error(
                RateLimited(f"this key has {_UPLOADS_PER_KEY} uploads open already", retry_after_seconds=5)
            )
            return
        # Counted here, not in the task: many heads may come before the first task runs.
        self._uploads += 1
        self._uploads_by_key[key] += 1
        self._calls.serve(exchange, self._create(exchange, key))

    def every(self, exchange: Exchange) -> None:
        """A page of the client's files."""

        async def work() -> None:
            page = Page.from_query(exchange.query, default=_LIST_LIMIT, most=_LIST_LIMIT)
            purpose = parse_qs(exchange.query).get("purpose", [None])[-1]
            found, has_more = await self._space.page(current_identity().name, page, purpose)
            exchange.respond_json(200, list_body([record.body() for record in found], has_more=has_more))

        self._calls.serve(exchange, work())

    def one(self, exchange: Exchange) -> None:
        """What is known of a file."""

        async def work() -> None:
            record = await self._space.get(exchange.params, current_identity().name)
            exchange.respond_json(200, record.body())

        self._calls.serve(exchange, work())

    def content(self, exchange: Exchange) -> None:
        """The body of a file, in pieces as the client takes them."""
        self._calls.serve(exchange, self._content(exchange))

    def delete(self, exchange: Exchange) -> None:
        """Remove a file."""

        async def work() -> None:
            await self._space.delete(exchange.params, current_identity().name)
            exchange.respond_json(200, {"id": exchange.params, "object": "file", "deleted": True})

        self._calls.serve(exchange, work())

    async def close(self) -> None:
        """Let what was begun end."""
        await self._calls.close()

    async def _create(self, exchange: Exchange, owner: str) -> None:
        length = exchange.headers.get("content-length", "")
        try:
            async with self._space.uploading(int(length) if length.isdigit() else 0) as reservation:
                record = await self._received(exchange, owner, reservation)
        finally:
            self._uploads -= 1
            self._uploads_by_key[owner] -= 1
            if not self._uploads_by_key[owner]:
                del self._uploads_by_key[owner]
        exchange.respond_json(200, record.body())

    async def _received(self, exchange: Exchange, owner: str, reservation: Reservation) -> FileRecord:
        assert exchange.body_stream is not None
        file_id, kept = new_file_id(), False
        try:
            path = self._space.path(file_id)
            content_type = exchange.headers.get("content-type", "")
            upload = await receive(content_type, exchange.body_stream, path, reservation.take)
            expires_after = self._checked(upload.fields, upload.size)
            now = time.time()
            record = FileRecord(file_id, owner, "batch", upload.filename or "", upload.size, now, now + expires_after)
            await self._space.add(record, reservation)
            kept = True
        finally:
            if not kept:
                await self._space.remove_bodies([file_id])
        return record

    def _checked(self, fields: dict[str, str], size: int) -> float:
        """Seconds until it expires; raises InvalidRequest for a form that says something wrong."""
        purpose = fields.get("purpose")
        if purpose is None:
            raise InvalidRequest("'purpose' is missing", param="purpose")
        if purpose != "batch":
            raise InvalidRequest(f"'purpose' is {purpose!r}; only batch is served", param="purpose")
        if not size:
            raise InvalidRequest("the file is empty", param="file", reason="empty_file")
        prefix = "expires_after["
        wanted: dict[str, Any] = {
            key[len(prefix) : -1]: value
            for key, value in fields.items()
            if key.startswith(prefix) and key.endswith("]")
        }
        return expiry_seconds(wanted, "expires_after") if wanted else self._expiry_seconds

    async def _content(self, exchange: Exchange) -> None:
        record = await self._space.get(exchange.params, current_identity().name)
        headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
        if exchange.head_only:
            exchange.respond(200, b"", "application/octet-stream", headers)
            return
        flow = _Flow(exchange)
        try:
            file = await asyncio.to_thread(self._space.path(record.id).open, "rb")
        except OSError as error:
            raise EngineError(f"the content of {record.id!r} cannot be read: {error.strerror}") from error
        with file:
            exchange.start(200, "application/octet-stream", headers)
            while data := await asyncio.to_thread(file.read, _PIECE_BYTES):
                exchange.write(data)
                if not await flow.goes_on():
                    return
        exchange.end()


class _Flow:
    """Whether the client keeps up with what is written to it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._free = asyncio.Event()
        self._free.set()
        exchange.on_writable(self._on_writable)
        exchange.on_disconnect(self._free.set)

    async def goes_on(self) -> bool:
        """Wait until more may be written; False when nobody reads any more."""
        await self._free.wait()
        return not self._exchange.disconnected

    def _on_writable(self, writable: bool) -> None:
        if writable:
            self._free.set()
        else:
            self._free.clear()
