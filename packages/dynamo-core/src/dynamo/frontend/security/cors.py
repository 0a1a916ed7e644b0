"""Lets pages of other origins use this server from a browser; off unless origins are configured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dynamo.runtime.http import Exchange, RouteHandler

__all__ = ["Cors"]

#: What a page may read of an answer beyond the safe headers.
_EXPOSED = (
    "retry-after, x-request-id, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_HEADER_NAMES = re.compile(r"[\w\-, ]{0,2048}\Z", re.ASCII)
_USUAL_HEADERS = "authorization, content-type, x-api-key"
_PREFLIGHT_SECONDS = "600"


class Cors:
    """The CORS headers for pages of `origins`; ``*`` allows all. Cookies are never involved: keys are headers."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = {origin.rstrip("/").lower() for origin in origins}

    def allow(self, handler: RouteHandler) -> RouteHandler:
        """`handler`, whose every answer may be read by the allowed origins."""

        def allowed(exchange: Exchange) -> None:
            exchange.extra_head += self._head(exchange)
            handler(exchange)

        return allowed

    def preflight(self, methods: Sequence[str]) -> RouteHandler:
        """The handler of OPTIONS for a path that serves `methods`. It asks for no key: browsers send none."""
        allow_methods = ", ".join(methods)

        def answer(exchange: Exchange) -> None:
            exchange.extra_head += self._head(exchange)
            headers = {}
            if self._allowed_origin(exchange):
                # Clients add headers of their own (x-stainless-*, ...), and none of them grants anything here.
                wanted = exchange.headers.get("access-control-request-headers", "")
                headers = {
                    "access-control-allow-methods": allow_methods,
                    "access-control-allow-headers": wanted if _HEADER_NAMES.match(wanted) else _USUAL_HEADERS,
                    "access-control-max-age": _PREFLIGHT_SECONDS,
                }
            exchange.respond(200, b"", "text/plain", headers)

        return answer

    def _allowed_origin(self, exchange: Exchange) -> str:
        """The origin of the page if it is allowed, else nothing."""
        origin = exchange.headers.get("origin", "")
        return origin if "*" in self._origins or origin.lower() in self._origins else ""

    def _head(self, exchange: Exchange) -> bytes:
        origin = self._allowed_origin(exchange)
        if not origin:
            return b"vary: origin\r\n"
        shown = "*" if "*" in self._origins else origin
        lines = f"access-control-allow-origin: {shown}\r\nvary: origin\r\naccess-control-expose-headers: {_EXPOSED}\r\n"
        return lines.encode("latin-1")
