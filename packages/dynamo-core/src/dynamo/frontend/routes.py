"""The table of routes: what is served, who may call it, and what `dynamo.frontend.openapi` says of it.

A route cannot be served without being in the table, so it cannot be undocumented, and it cannot miss its guard.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from dynamo.errors import DynamoError
from dynamo.frontend.security import AdminRequired, Cors, Security, current_identity
from dynamo.runtime.http import Exchange, HttpServer, RouteHandler

__all__ = ["Access", "Route", "install"]

RenderError: TypeAlias = Callable[[DynamoError], "tuple[int, dict[str, Any]]"]

_PARAMETER = re.compile(r"\{\w+\}")


class Access(enum.Enum):
    """Who may call a route, when API keys are configured."""

    OPEN = "open"
    """Everybody: probes, documentation."""
    KEY = "key"
    """Whoever has a key."""
    METERED = "metered"
    """As KEY, and it counts as a request of that key."""
    ADMIN = "admin"
    """Whoever has an admin's key."""


class Route(NamedTuple):
    """One method of one path."""

    method: str
    path: str
    """As OpenAPI writes it: at most one ``{parameter}``, which may hold slashes, as model names do."""
    handler: RouteHandler
    summary: str
    access: Access = Access.KEY
    request: type[msgspec.Struct] | None = None
    """The JSON body."""
    response: str = "application/json"
    """Content type of a success."""
    streams: bool = False
    """Whether ``"stream": true`` makes it server-sent events."""
    form: bool = False
    """Whether the body is a form with a file, which the handler reads in pieces; see `HttpServer.route`."""
    render_error: RenderError | None = None
    """Status and body of an error; None: OpenAI's."""


def install(server: HttpServer, routes: Sequence[Route], security: Security | None, cors: Cors | None) -> None:
    """Serve `routes`, each behind the guard that its access asks for."""
    methods: dict[str, list[str]] = {}
    for route in routes:
        handler = route.handler
        if security is not None and route.access is not Access.OPEN:
            if route.access is Access.ADMIN:
                handler = _for_admins(handler)
            handler = security.guard(handler, metered=route.access is Access.METERED)
        if route.render_error is not None:
            # Outside the guard: refusals of keys are rendered too.
            handler = _rendering(handler, route.render_error)
        if cors is not None:
            # Outermost: a page must be able to read why it was refused.
            handler = cors.allow(handler)
        path = _PARAMETER.sub("*", route.path)
        server.route(route.method, path, handler, streams_body=route.form)
        methods.setdefault(path, []).append(route.method)
    if cors is not None:
        for path, served in methods.items():
            server.route("OPTIONS", path, cors.preflight(served))


def _for_admins(handler: RouteHandler) -> RouteHandler:
    def handle(exchange: Exchange) -> None:
        if not current_identity().admin:
            raise AdminRequired(
                f"{exchange.method} {exchange.path} is for admin keys only",
                hint="set `admin: true` for the key in --api-key-file",
            )
        handler(exchange)

    return handle


def _rendering(handler: RouteHandler, render_error: RenderError) -> RouteHandler:
    def handle(exchange: Exchange) -> None:
        exchange.render_error = render_error
        handler(exchange)

    return handle
