"""Answers one request of a batch by the route handler that serves it live, when live requests leave room for it."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from dynamo.frontend.batches.input import BatchLine
from dynamo.frontend.batches.places import FairPlaces
from dynamo.frontend.batches.table import Answered
from dynamo.frontend.routes import Route
from dynamo.frontend.security import Identity, run_as
from dynamo.runtime.http import LocalExchange, LocalResponse

__all__ = ["LineCaller", "unanswered"]

_LOOK_SECONDS = 0.1
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
#: Of a request whose worker was lost, each time after all migrations that a live request has too.
_LOST_WORKERS = 3
_NO_ROOM = frozenset({429, 503})
_LOST = frozenset({502, 504})
_MOST_PRIORITY = 2**31 - 1

_encode = msgspec.json.Encoder().encode


class _Error(msgspec.Struct):
    code: str


class _ErrorBody(msgspec.Struct):
    error: _Error


class LineCaller:
    """Used by every batch of this process.

    Args:
        routes: by path; what `dynamo.frontend.batches.request.ENDPOINTS` names.
        crowded: whether requests for a model wait at all its workers already.
        priority: added to that of the clients; lower is sooner.
        places: how many requests are in work at a time; owners get them in turn. One that waits for room has none, so
            that a batch for a model that is busy or gone does not hold up those for others.
        models_known_from: monotonic seconds. Before it a model that does not exist is waited for, since a process
            that has just started does not know all workers yet.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        crowded: Callable[[str], bool],
        priority: int,
        places: int,
        models_known_from: float,
    ) -> None:
        self._routes = routes
        self._crowded = crowded
        self._priority = priority
        self._places = FairPlaces(places)
        self._models_known_from = models_known_from

    async def answer(self, line: BatchLine, owner: str, identity: Callable[[], Identity]) -> Answered:
        """The line of the output or the error file. Cancelling it frees the engine.

        `identity` says what the owner may do, each time that the request is made; what it raises comes through.
        """
        call_id = f"batch_req_{secrets.token_hex(16)}"
        body = _encode({**line.body, "priority": self._lowered(line.body.get("priority"))})
        response = await self._response(line, body, call_id, owner, identity)
        return Answered(line.number, response.status >= 400, _line_body(line, call_id, response))

    async def _response(
        self, line: BatchLine, body: bytes, call_id: str, owner: str, identity: Callable[[], Identity]
    ) -> LocalResponse:
        pause, lost = _FIRST_PAUSE_SECONDS, 0
        while True:
            while self._crowded(line.body["model"]):
                await asyncio.sleep(_LOOK_SECONDS)
            async with self._places.of(owner):
                if self._crowded(line.body["model"]):
                    continue
                response = await self._ask(line.url, body, call_id, identity())
            lost += response.status in _LOST
            if not self._may_be_repeated(response, lost):
                return response
            told = response.headers.get("retry-after", "")
            # Not all at once: others have been refused at the same moment.
            await asyncio.sleep(max(pause, float(told) if told.isdigit() else 0.0) * random.uniform(0.75, 1.25))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _ask(self, path: str, body: bytes, call_id: str, identity: Identity) -> LocalResponse:
        route = self._routes[path]
        exchange = LocalExchange("POST", path, body, {"x-request-id": call_id})
        if route.render_error is not None:
            exchange.render_error = route.render_error
        run_as(identity, route.handler, exchange)
        return await exchange.response()

    def _may_be_repeated(self, response: LocalResponse, lost: int) -> bool:
        if response.status in _NO_ROOM:
            return True
        if response.status in _LOST:
            return lost < _LOST_WORKERS
        unknown = response.status == 404 and time.monotonic() < self._models_known_from
        return unknown and _error_code(response) == "model_not_found"

    def _lowered(self, wanted: Any) -> Any:
        """Behind live requests; what is no number is left to the handler to refuse."""
        if wanted is not None and (not isinstance(wanted, int) or isinstance(wanted, bool)):
            return wanted
        return max(-_MOST_PRIORITY, min((wanted or 0) + self._priority, _MOST_PRIORITY))


def unanswered(line: BatchLine, code: str, message: str) -> Answered:
    """The line of the error file for a request that was not made."""
    body = {
        "id": f"batch_req_{secrets.token_hex(16)}",
        "custom_id": line.custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
    return Answered(line.number, True, _encode(body))


def _line_body(line: BatchLine, call_id: str, response: LocalResponse) -> bytes:
    answer = {"status_code": response.status, "request_id": call_id, "body": msgspec.Raw(response.body)}
    return _encode({"id": call_id, "custom_id": line.custom_id, "response": answer, "error": None})


def _error_code(response: LocalResponse) -> str:
    try:
        return msgspec.json.decode(response.body, type=_ErrorBody).error.code
    except msgspec.MsgspecError:
        return ""
