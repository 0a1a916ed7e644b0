"""``GET /openapi.json`` and ``/docs``, made of the table of routes and of the structs that bodies are decoded into."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import msgspec

from dynamo.frontend.docs_page import docs_page
from dynamo.frontend.routes import Access, Route
from dynamo.runtime.http import Exchange

__all__ = ["ApiPages", "openapi_document"]

_REFERENCE = "#/components/schemas/{name}"
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_UPLOAD = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"const": "batch"}},
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


class ErrorBody(msgspec.Struct):
    """What went wrong; `param` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class Error(msgspec.Struct):
    """Every answer that is not a success."""

    error: ErrorBody


class ApiPages:
    """The two route handlers; both bodies are made once, from the routes given to `added`."""

    def __init__(self) -> None:
        self._document = b""
        self._page = b""

    def added(self, routes: Sequence[Route]) -> list[Route]:
        """`routes` and those of both pages, which describe them all."""
        whole = [
            *routes,
            Route("GET", "/openapi.json", self.document, "This document.", Access.OPEN),
            Route("GET", "/docs", self.page, "This document for people.", Access.OPEN, response="text/html"),
        ]
        document = openapi_document(whole)
        self._document = msgspec.json.encode(document)
        self._page = docs_page(document).encode()
        return whole

    def document(self, exchange: Exchange) -> None:
        """The OpenAPI document."""
        exchange.respond(200, self._document)

    def page(self, exchange: Exchange) -> None:
        """The page for people; it loads nothing, so it is told not to."""
        policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        exchange.respond(200, self._page, "text/html; charset=utf-8", policy)


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    """An OpenAPI 3.1 document of `routes`."""
    requests = sorted({route.request for route in routes if route.request is not None}, key=lambda kind: kind.__name__)
    references, schemas = msgspec.json.schema_components([*requests, Error], ref_template=_REFERENCE)
    by_type = dict(zip(requests, references, strict=False))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dynamo",
            "version": metadata.version("dynamo-core"),
            "description": "OpenAI-compatible API of a dynamo frontend.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SCHEMES},
    }


def _operation(route: Route, references: dict[type[msgspec.Struct], dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "summary": route.summary,
        "responses": _responses(route),
    }
    parameters = re.findall(r"\{(\w+)\}", route.path)
    if parameters:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ]
    if route.request is not None:
        content = {"application/json": {"schema": references[route.request]}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.form:
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}}
    if route.access is not Access.OPEN:
        # The empty alternative: without configured keys none is asked for.
        operation["security"] = [{"bearer": []}, {"api_key": []}, {}]
    return operation


def _responses(route: Route) -> dict[str, Any]:
    content: dict[str, Any] = {route.response: {}}
    if route.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "Success.", "content": content}}
    names_a_model = route.request is not None or "{" in route.path
    if route.request is not None or route.form:
        responses["400"] = _refusal("The request is wrong; `param` names the field.")
        responses["413"] = _refusal("The body is too large.")
    if route.access is not Access.OPEN:
        responses["401"] = _refusal("No API key, or a wrong one.")
    if route.access is Access.ADMIN:
        responses["403"] = _refusal("The API key is no admin's.")
    if names_a_model:
        responses["404"] = _refusal("There is no such model, or the API key may not use it.")
        responses["503"] = {**_refusal("Nobody can serve it now."), "headers": _RETRY_AFTER}
    if route.access is Access.METERED:
        responses["429"] = {**_refusal("A limit of the API key is used up."), "headers": _RETRY_AFTER}
    responses["default"] = _refusal("Any other failure.")
    return responses


def _refusal(description: str) -> dict[str, Any]:
    schema = {"$ref": _REFERENCE.format(name=Error.__name__)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
