"""Reads a document into a model and says, field by field, what does not fit.

An API server drops unknown fields without a word, so a misspelt field is a setting that silently does nothing.
:func:`check_fields` is what tells people, with the nearest name there is.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dynamo.config.settings import nearest
from dynamo.graph.metadata import GraphModel, Misplaced, Obsolete
from dynamo.graph.violation import Violation, join_path

__all__ = ["check_fields", "parse_model"]

M = TypeVar("M", bound=GraphModel)

_RULES = {
    "missing": "is required",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a map",
    "model_type": "must be a map",
    "string_too_short": "must not be empty",
}


def parse_model(model: type[M], document: Mapping[str, Any]) -> M | list[Violation]:
    """Validate `document`: the model, or everything that is wrong with its fields."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found: dict[str, Violation] = {}
        for item in error.errors(include_url=False, include_context=True):
            path = join_path(_real_path(item["loc"], document))
            violation = _explain(item["type"], item["msg"], path, item.get("input"))
            if path in found:  # one error for each type that the field may have
                violation = violation._replace(rule=f"{found[path].rule} or {violation.rule.removeprefix('must be ')}")
            found[path] = violation
        return list(found.values())


def check_fields(model: type[GraphModel], document: Any, path: str = "") -> Iterator[Violation]:
    """Unknown fields of `document` as errors, obsolete ones as warnings.

    Values of the wrong type are left to :func:`parse_model`.
    """
    if not isinstance(document, Mapping):
        return
    fields = _by_alias(model)
    for key, value in document.items():
        here = join_path([str(key)], path)
        field = fields.get(key)
        if field is None:
            yield Violation(here, value, "is not a field", _suggest(model, str(key), path))
            continue
        for mark in field.metadata:
            if isinstance(mark, (Obsolete, Misplaced)) and value is not None:
                rule = "is obsolete and has no effect" if isinstance(mark, Obsolete) else "is in the wrong place"
                yield Violation(here, value, rule, mark.hint, "warning")
        nested, shape = _nested_model(field.annotation)
        if nested is None:
            continue
        if shape is None:
            yield from check_fields(nested, value, here)
        elif shape is list and isinstance(value, list):
            for index, item in enumerate(value):
                yield from check_fields(nested, item, join_path([index], here))
        elif shape is dict and isinstance(value, Mapping):
            for name, item in value.items():
                yield from check_fields(nested, item, join_path([str(name)], here))


def _explain(kind: str, message: str, path: str, value: Any) -> Violation:
    rule = _RULES.get(kind)
    if rule is None:
        message = message.removeprefix("Input ").removeprefix("String ").removeprefix("Value error, ")
        rule = message.replace("should ", "must ", 1)
    hint = ""
    if kind == "string_type" and isinstance(value, bool):
        hint = f'put it in quotes: "{"true" if value else "false"}"'
    elif kind == "string_type" and isinstance(value, (int, float)):
        hint = f'put it in quotes: "{value}"'
    elif kind == "int_type" and isinstance(value, str) and value.isdigit():
        hint = f"take it out of its quotes: {value}"
    return Violation(path, None if kind == "missing" else value, rule, hint)


def _real_path(location: tuple[str | int, ...], document: Any) -> list[str | int]:
    """Take out what pydantic adds to a path, such as the name of a union's member."""
    path: list[str | int] = []
    for index, part in enumerate(location):
        if isinstance(document, Mapping):
            path.append(part)
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            path.append(part)
            document = document[part]
        elif index == len(location) - 1:
            break
    return path


def _by_alias(model: type[GraphModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _nested_model(annotation: Any) -> tuple[type[GraphModel] | None, type | None]:
    """The model inside an annotation, and whether it comes alone (None), in a list or in a map."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            nested, shape = _nested_model(option)
            if nested is not None:
                return nested, shape
        return None, None
    if origin is typing.Annotated:
        return _nested_model(arguments[0])
    if origin in (list, dict):
        nested, _ = _nested_model(arguments[-1])
        return nested, origin
    if isinstance(annotation, type) and issubclass(annotation, GraphModel):
        return annotation, None
    return None, None


def _suggest(model: type[GraphModel], key: str, path: str) -> str:
    if key in model.hints:
        return model.hints[key]
    known = list(_by_alias(model))
    guess = nearest(key, known)
    below = _below(model, key)
    if guess is not None and (below is None or difflib.SequenceMatcher(None, guess, key).ratio() > _SURE):
        return f"did you mean {guess!r}?"
    if below is not None:
        return f"move it to {join_path([below, key], path)}"
    return f"known fields: {', '.join(sorted(known))}" if len(known) <= 16 else "remove it, or check its place"


def _below(model: type[GraphModel], key: str) -> str | None:
    """Where, at most two levels below `model`, a field of this name belongs."""
    level = [("", model)]
    for _ in range(2):
        deeper: list[tuple[str, type[GraphModel]]] = []
        for path, parent in level:
            for name, field in _by_alias(parent).items():
                nested, shape = _nested_model(field.annotation)
                if nested is not None and shape is None:
                    deeper.append((join_path([name], path), nested))
        for path, child in deeper:
            if key in _by_alias(child) and path.split(".")[-1] in _HOMES:
                return path
        level = deeper
    return None


#: A name this alike (``env`` and ``envs``) was misspelt rather than misplaced.
_SURE = 0.8
#: Blocks that people forget to write around a field.
_HOMES = frozenset({"extraPodSpec", "mainContainer", "spec", "metadata"})
