"""The HTML page of an OpenAPI document: one file, no script, nothing to load, so it works without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["docs_page"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; padding: .4rem 0; }
code, .method { font-family: ui-monospace, monospace; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700; }
details { border-bottom: 1px solid #8884; }
table { border-collapse: collapse; margin: .5rem 0 1rem; scroll-margin-top: 3rem; }
td, th { border: 1px solid #8884; padding: .2rem .6rem; text-align: left; vertical-align: top; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #e8e8e8; } a { color: #9cf; } }
"""


def docs_page(document: Mapping[str, Any]) -> str:
    """HTML with every operation and every schema of `document`."""
    info = document["info"]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} API <small>{escape(info['version'])}</small></h1>",
            f'<p>{escape(info["description"])} For programs: <a href="openapi.json">openapi.json</a>.</p>',
            "<h2>Endpoints</h2>",
            *_operations(document),
            "<h2>Schemas</h2>",
            *_schemas(document),
            "</body></html>",
        ]
    )


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f'<details><summary><span class="method">{method.upper()}</span> <code>{escape(path)}</code> '
            yield f"{_prose(operation['summary'])}</summary>"
            body = operation.get("requestBody")
            if body is not None:
                for kind, content in body["content"].items():
                    yield f"<p>Body, {escape(kind)}: {_type(content['schema'])}</p>"
            yield "<table><tr><th>status</th><th>meaning</th><th>content</th></tr>"
            for status, response in sorted(operation["responses"].items()):
                kinds = ", ".join(escape(kind) for kind in response["content"])
                yield f"<tr><td>{status}</td><td>{_prose(response['description'])}</td><td>{kinds}</td></tr>"
            yield "</table></details>"


def _schemas(document: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in document["components"]["schemas"].items():
        required = schema.get("required", ())
        yield f"<details><summary><code>{escape(name)}</code> {_prose(schema.get('description', ''))}</summary>"
        # The id is inside: only then does a link open what it leads to.
        yield f'<table id="{escape(name)}"><tr><th>field</th><th>type</th><th>default</th></tr>'
        for field, kind in schema.get("properties", {}).items():
            default = "" if kind.get("default") is None else f"<code>{escape(json.dumps(kind['default']))}</code>"
            default = "required" if field in required else default
            yield f"<tr><td><code>{escape(field)}</code></td><td>{_type(kind)}</td><td>{default}</td></tr>"
        yield "</table></details>"


def _prose(text: str) -> str:
    """Docstrings mark code by backticks."""
    return re.sub(r"(`+)(.+?)\1", r"<code>\2</code>", escape(text))


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items') or {})}"
    return escape(str(schema.get("type", "any")))
