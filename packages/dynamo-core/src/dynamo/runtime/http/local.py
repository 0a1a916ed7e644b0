"""Requests that a process makes to route handlers of its own, without a socket: the lines of a batch are run so."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from dynamo.errors import EngineError
from dynamo.runtime.http.exchange import Exchange

__all__ = ["LocalExchange", "LocalResponse"]


class LocalResponse(NamedTuple):
    """What the handler answered."""

    status: int
    body: bytes
    headers: dict[str, str]
    """Names in lower case."""


class _NoConnection:
    """Implements `ExchangeConnection`; a local exchange writes to nobody."""

    peer = "local"

    def write(self, data: bytes) -> None:
        """See `ExchangeConnection`."""

    def finish(self, exchange: Exchange) -> None:
        """See `ExchangeConnection`."""


class LocalExchange(Exchange):
    """One request whose answer is awaited in place of being written. Answers that are streamed are refused."""

    __slots__ = ("_answer",)

    def __init__(self, method: str, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(_NoConnection())
        self.method = method
        self.path = path
        self.body = body
        self.headers = dict(headers or {})
        self._answer: asyncio.Future[LocalResponse] = asyncio.get_running_loop().create_future()

    async def response(self) -> LocalResponse:
        """Wait for the answer. When the waiting task is cancelled, the handler sees its client leave."""
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.lose()
            raise

    def respond(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """See `Exchange.respond`."""
        if self.responded or self.disconnected:
            return
        self.responded = True
        told = {**self.response_headers, **(headers or {}), "content-type": content_type}
        if not self._answer.done():
            self._answer.set_result(LocalResponse(status, body, told))

    def start(self, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:  # noqa: ARG002
        """See `Exchange.start`."""
        self.respond_error(EngineError("a local request cannot be streamed"))
