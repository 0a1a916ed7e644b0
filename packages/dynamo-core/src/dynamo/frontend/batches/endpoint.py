"""Route handlers of ``/v1/batches``."""

from __future__ import annotations

import time
from collections.abc import Callable

from dynamo.errors import InvalidRequest
from dynamo.frontend.batches.model_names import ModelNames
from dynamo.frontend.batches.record import new_batch_id
from dynamo.frontend.batches.request import BatchRequest, new_state
from dynamo.frontend.batches.table import BatchTable
from dynamo.frontend.calls import Calls
from dynamo.frontend.files import FileSpace
from dynamo.frontend.listing import Page, list_body
from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.requests import decode_body
from dynamo.frontend.security import current_identity
from dynamo.runtime.http import Exchange

__all__ = ["Batches"]


class Batches:
    """The route handlers; `wake` is called when there is something to do."""

    def __init__(
        self,
        table: BatchTable,
        names: ModelNames,
        space: FileSpace,
        metrics: FrontendMetrics,
        wake: Callable[[], None],
        *,
        strict: bool,
    ) -> None:
        self._table = table
        self._names = names
        self._space = space
        self._wake = wake
        self._strict = strict
        self._calls = Calls(metrics, "batches")

    def create(self, exchange: Exchange) -> None:
        """Make a batch of a file. The file is looked at later: what is wrong in it is in the batch's ``errors``."""

        async def work() -> None:
            request = decode_body(exchange.body, BatchRequest, strict=self._strict)
            state = new_state(request, time.time())
            owner = current_identity().name
            try:
                file = await self._space.get(request.input_file_id, owner)
            except InvalidRequest as error:
                raise InvalidRequest(error.message, param="input_file_id") from error
            if file.purpose != "batch":
                raise InvalidRequest(
                    f"the purpose of {file.id!r} is {file.purpose!r}; a batch reads files of purpose batch",
                    param="input_file_id",
                )
            # First, or a process that serves another model could end it as one for a model that does not exist.
            await self._names.note()
            record = await self._table.add(new_batch_id(), owner, file.id, state)
            self._wake()
            exchange.respond_json(200, record.body())

        self._calls.serve(exchange, work())

    def every(self, exchange: Exchange) -> None:
        """A page of the client's batches, newest first."""

        async def work() -> None:
            found, has_more = await self._table.page(current_identity().name, Page.from_query(exchange.query))
            exchange.respond_json(200, list_body([record.body() for record in found], has_more=has_more))

        self._calls.serve(exchange, work())

    def one(self, exchange: Exchange) -> None:
        """How a batch is doing."""

        async def work() -> None:
            record = await self._table.get(exchange.params, current_identity().name)
            exchange.respond_json(200, record.body())

        self._calls.serve(exchange, work())

    def cancel(self, exchange: Exchange) -> None:
        """End a batch early; what is answered already is in its files."""

        async def work() -> None:
            record = await self._table.cancel(exchange.params, current_identity().name)
            self._wake()
            exchange.respond_json(200, record.body())

        self._calls.serve(exchange, work())

    async def close(self) -> None:
        """Let what was begun end."""
        await self._calls.close()
