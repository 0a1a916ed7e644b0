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
_PREFLIGHT_SECONDS = 600


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
        allow_methods = ", ".join(methods).encode()

        def answer(exchange: Exchange) -> None:
            head = self._head(exchange)
            if head:
                # Clients add headers of their own (x-stainless-*, ...), and none of them grants anything here.
                wanted = exchange.headers.get("access-control-request-headers", "")
                names = wanted if _HEADER_NAMES.match(wanted) else "authorization, content-type, x-api-key"
                head += b"access-control-allow-methods: %b\r\naccess-control-max-age: %d\r\n" % (
                    allow_methods,
                    _PREFLIGHT_SECONDS,
                )
                head += b"access-control-allow-headers: %b\r\n" % names.encode()
            exchange.extra_head += head
            exchange.respond(204, b"", "text/plain")

        return answer

    def _head(self, exchange: Exchange) -> bytes:
        origin = exchange.headers.get("origin", "")
        if "*" in self._origins and origin:
            shown = "*"
        elif origin.lower() in self._origins:
            shown = origin
        else:
            return b"vary: origin\r\n"
        return (
            f"access-control-allow-origin: {shown}\r\nvary: origin\r\naccess-control-expose-headers: {_EXPOSED}\r\n"
        ).encode("latin-1")
