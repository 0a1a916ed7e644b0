"""Grammars in the words of vLLM's clients: ``structured_outputs``, and ``guided_json`` and its like, also in ``nvext``.

`dynamo.frontend.sampling` puts them beside ``response_format``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import msgspec

from dynamo.errors import InvalidRequest
from dynamo.frontend.body_bounds import check_count, check_grammar_bytes, schema_text
from dynamo.frontend.requests import CommonParameters
from dynamo.protocols.llm import GuidedDecoding

__all__ = ["forces_text", "named_grammar", "names_grammar"]

_Kind: TypeAlias = Literal["json", "json_object", "regex", "choice", "grammar"]
_KINDS: tuple[_Kind, ...] = ("json", "regex", "choice", "grammar")


def names_grammar(request: CommonParameters) -> bool:
    """Whether a grammar is named, be it right or wrong."""
    return any(True for _ in _named(request))


def forces_text(request: CommonParameters) -> bool:
    """Whether a grammar is named whose text need not be JSON."""
    return any(kind not in ("json", "json_object") for _, kind, _ in _named(request))


def named_grammar(request: CommonParameters) -> GuidedDecoding | None:
    """The one grammar that `request` names.

    Raises:
        InvalidRequest: there are several, or it is malformed or too large; `param` names the field.
    """
    named = list(_named(request))
    if not named:
        _check_nothing_else(request)
        return None
    param, kind, value = named[0]
    if len(named) > 1:
        raise InvalidRequest(f"'{named[1][0]}' cannot be combined with '{param}'", param=named[1][0])
    return GuidedDecoding(kind, _text(kind, value, param), param)


def _named(request: CommonParameters) -> Iterator[tuple[str, _Kind, Any]]:
    """The field's name for errors, the kind and the value of each grammar that is given."""
    structured = request.structured_outputs
    for owner, path, prefix in (
        (request, "", "guided_"),
        (request.nvext, "nvext.", "guided_"),
        (structured, "structured_outputs.", ""),
    ):
        if owner is None:
            continue
        for kind in _KINDS:
            value = getattr(owner, prefix + kind)
            if value is not None:
                yield f"{path}{prefix}{kind}", kind, value
    if structured is not None and structured.json_object:
        yield "structured_outputs.json_object", "json_object", ""


def _check_nothing_else(request: CommonParameters) -> None:
    structured = request.structured_outputs
    if structured is None:
        return
    if structured.structural_tag is not None:
        param = "structured_outputs.structural_tag"
        raise InvalidRequest(f"'{param}' is not supported", param=param)
    raise InvalidRequest(
        "'structured_outputs' names no grammar; use json, regex, choice, grammar or json_object",
        param="structured_outputs",
    )


def _text(kind: _Kind, value: Any, param: str) -> str:
    """The value as engines take it."""
    if kind == "json_object":
        return ""
    if isinstance(value, dict):
        return schema_text(value, param)
    if isinstance(value, list):
        check_count(param, value)
        if not value or not all(value):
            raise InvalidRequest(f"'{param}' must have choices, none of them empty", param=param)
        return schema_text(value, param)
    text = str(value)
    if not text:
        raise InvalidRequest(f"'{param}' must not be empty", param=param)
    check_grammar_bytes(text, param)
    if kind == "json":
        _check_schema(text, param)
    return text


def _check_schema(text: str, param: str) -> None:
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"'{param}' must be a JSON schema, an object: {error}", param=param) from error
