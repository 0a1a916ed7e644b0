"""The JSON schema of a graph, in the form that a CustomResourceDefinition takes: no references, no unions."""

from __future__ import annotations

from typing import Any

from dynamo.graph.deployment import DynamoGraphDeployment
from dynamo.graph.metadata import GraphModel

__all__ = ["json_schema"]

_DROPPED = frozenset({"title", "default", "$defs", "additionalProperties"})


def json_schema(model: type[GraphModel] = DynamoGraphDeployment) -> dict[str, Any]:
    """A structural OpenAPI v3 schema of `model`; opaque maps keep unknown fields.

    Defaults are left out: the stack applies them when it reads, and an object keeps what its author wrote.
    """
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return _structural(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    if {option.get("type") for option in options} == {"integer", "string"}:
        return {"x-kubernetes-int-or-string": True}
    if options:
        return _structural({**schema, **options[0], "anyOf": []}, definitions)
    result = {key: value for key, value in schema.items() if key not in _DROPPED and key != "anyOf"}
    if "const" in result:
        result["enum"] = [result.pop("const")]
    if "properties" in result:
        result["properties"] = {name: _structural(value, definitions) for name, value in result["properties"].items()}
    if "items" in result:
        result["items"] = _structural(result["items"], definitions)
    values = schema.get("additionalProperties")
    if result.get("type") == "object" and "properties" not in result:
        if isinstance(values, dict) and values:
            result["additionalProperties"] = _structural(values, definitions)
        else:
            result["x-kubernetes-preserve-unknown-fields"] = True
    return result
