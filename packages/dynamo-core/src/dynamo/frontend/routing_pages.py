"""Shows why a worker was chosen: in the answer of a request that asks, and at ``/debug/routing``.

For whom: every client with ``--explain``, and always the holder of an admin key. With API keys a client sees the
decisions about its own requests, an admin all of them. The programs that read it: ``dynamo explain REQUEST_ID``, and
people.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from typing import Any

import msgspec

from dynamo.errors import InvalidRequest
from dynamo.frontend.security import AdminRequired, current_identity
from dynamo.router.candidates import CandidateTable
from dynamo.router.explain import Decision, DecisionLog, decision_listener
from dynamo.runtime.http import Exchange, RouteHandler

__all__ = ["ASK_HEADER", "RoutingPages"]

#: A request with this header set to 1 is answered with ANSWER_HEADER.
ASK_HEADER = "x-dynamo-explain"
ANSWER_HEADER = "x-dynamo-routing"
#: A header should stay below the few kilobytes that proxies allow; the page has all candidates.
_HEADER_CANDIDATES = 8
_PAGE_DECISIONS = 50


class _UnknownRequest(InvalidRequest):
    """No decision about this request is kept."""

    code = "request_not_found"
    http_status = 404


class RoutingPages:
    """Handlers over the log of decisions.

    Args:
        decisions: the log.
        tables: the candidates of every model, by name.
        explain: whether everybody may ask, as ``--explain`` says.
        keyed: whether API keys are configured, so that requests have owners.
    """

    def __init__(
        self,
        decisions: DecisionLog,
        tables: Callable[[], dict[str, CandidateTable]],
        *,
        explain: bool,
        keyed: bool,
    ) -> None:
        self._decisions = decisions
        self._tables = tables
        self._explain = explain
        self._keyed = keyed

    def explained(self, handler: RouteHandler) -> RouteHandler:
        """`handler`, which answers with its routing decision when a client that may asks for it."""

        def handle(exchange: Exchange) -> None:
            may_ask = self._explain or current_identity().admin
            if exchange.headers.get(ASK_HEADER) != "1" or not may_ask:
                handler(exchange)
                return

            def tell(decision: Decision) -> None:
                exchange.response_headers[ANSWER_HEADER] = _header(decision)

            token = decision_listener.set(tell)
            try:
                handler(exchange)
            finally:
                decision_listener.reset(token)

        return handle

    def every(self, exchange: Exchange) -> None:
        """The last decisions, newest first; ``?limit=N``. Who sees all of them sees what they came to, too."""
        owner = self._owner()
        asked = urllib.parse.parse_qs(exchange.query).get("limit", [str(_PAGE_DECISIONS)])[-1]
        if not (asked.isdecimal() and asked.isascii() and len(asked) < 10):
            raise InvalidRequest(f"limit is {asked[:32]!r}; it must be a number", param="limit")
        decisions = self._decisions.last(int(asked), owner)
        body: dict[str, Any] = {"decisions": [decision.to_json() for decision in decisions]}
        if owner is None:
            body["models"] = {model: table.report() for model, table in self._tables().items()}
        exchange.respond_json(200, body)

    def one(self, exchange: Exchange) -> None:
        """The decisions of one request, one per choice and per worker that it moved to."""
        decisions = self._decisions.find(exchange.params, self._owner())
        if not decisions:
            raise _UnknownRequest(
                f"no decision about request {exchange.params!r} is kept",
                hint="the id is the `id` of the answer; only the last decisions are kept (--router-decision-log-size)",
            )
        exchange.respond_json(200, {"decisions": [decision.to_json() for decision in decisions]})

    def _owner(self) -> str | None:
        """Whose decisions the client may see; None: everybody's.

        Raises:
            AdminRequired: none.
        """
        identity = current_identity()
        if identity.admin:
            return None
        if not self._explain:
            raise AdminRequired(
                "routing decisions are shown to admin keys only",
                hint="set `admin: true` for the key in --api-key-file, or start the frontend with --explain",
            )
        return identity.name if self._keyed else None


def _header(decision: Decision) -> str:
    body = decision.to_json()
    body["candidates"] = body["candidates"][:_HEADER_CANDIDATES]
    return msgspec.json.encode(body).decode()
