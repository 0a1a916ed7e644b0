"""Shows why a worker was chosen: in the answer of a request that asks, and at ``/debug/routing``. Only with --explain.

The programs that read it: ``dynamo explain REQUEST_ID``, and people.
"""

from __future__ import annotations

import urllib.parse

import msgspec

from dynamo.errors import InvalidRequest
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
    """Handlers over the log of decisions."""

    def __init__(self, decisions: DecisionLog) -> None:
        self._decisions = decisions

    def explained(self, handler: RouteHandler) -> RouteHandler:
        """`handler`, which answers with its routing decision when the client asks for it."""

        def handle(exchange: Exchange) -> None:
            if exchange.headers.get(ASK_HEADER) != "1":
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
        """The last decisions, newest first; ``?limit=N``."""
        asked = urllib.parse.parse_qs(exchange.query).get("limit", [str(_PAGE_DECISIONS)])[-1]
        if not asked.isdecimal():
            raise InvalidRequest(f"limit is {asked!r}; it must be a number", param="limit")
        decisions = self._decisions.last(int(asked))
        exchange.respond_json(200, {"decisions": [decision.to_json() for decision in decisions]})

    def one(self, exchange: Exchange) -> None:
        """The decisions of one request, one per choice and per worker that it moved to."""
        decisions = self._decisions.find(exchange.params)
        if not decisions:
            raise _UnknownRequest(
                f"no decision about request {exchange.params!r} is kept",
                hint="the id is the `id` of the answer; only the last decisions are kept (--router-decision-log-size)",
            )
        exchange.respond_json(200, {"decisions": [decision.to_json() for decision in decisions]})


def _header(decision: Decision) -> str:
    body = decision.to_json()
    body["candidates"] = body["candidates"][:_HEADER_CANDIDATES]
    return msgspec.json.encode(body).decode()
