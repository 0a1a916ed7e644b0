"""Reads graph files: YAML or JSON, one or many documents, graphs among other Kubernetes objects.

``dynamo serve`` and the operator's webhook both read graphs here; only the first minds unknown fields.
"""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dynamo.errors import ConfigError
from dynamo.graph.beta import BETA_API_VERSION, BetaDeployment, check_references, to_v1alpha1
from dynamo.graph.deployment import API_VERSION, KIND, DynamoGraphDeployment
from dynamo.graph.fields import check_fields, parse_model
from dynamo.graph.metadata import GraphModel
from dynamo.graph.validate import validate_graph
from dynamo.graph.violation import Violation

__all__ = ["GraphDocument", "OtherDocument", "load_graphs", "read_graph"]

#: An API server takes 3 MiB.
_MAX_BYTES = 3 * 1024 * 1024
#: Aliases let a small file stand for a huge one.
_MAX_NODES = 200_000
_MAX_DEPTH = 100


class OtherDocument(NamedTuple):
    """A Kubernetes object that stands beside a graph: a ConfigMap, a claim, a Secret, ..."""

    kind: str
    name: str
    document: Mapping[str, Any]


class GraphDocument(NamedTuple):
    """One graph of a file."""

    graph: DynamoGraphDeployment
    warnings: list[Violation]
    others: list[OtherDocument]
    """The other objects of the same file; a cluster needs them, processes do not see them."""


def load_graphs(source: Path | str, *, strict: bool = True) -> list[GraphDocument]:
    """Read all graphs of a file (a `Path`) or of YAML text (a `str`).

    `strict` makes unknown fields errors; without it they are dropped, as a Kubernetes API server does.

    Raises:
        ConfigError: the file cannot be read, is not YAML, holds no graph, or a graph is wrong. The message lists
            everything that is wrong, ``details["violations"]`` the same as maps.
    """
    origin = str(source) if isinstance(source, Path) else "graph"
    documents = _documents(_read(source) if isinstance(source, Path) else source, origin)
    others = [
        OtherDocument(str(document.get("kind")), str((document.get("metadata") or {}).get("name")), document)
        for document in documents
        if document.get("kind") != KIND
    ]
    graphs = []
    for document in documents:
        if document.get("kind") == KIND:
            result, violations = read_graph(document, strict=strict)
            errors = [violation for violation in violations if violation.severity == "error"]
            if result is None or errors:
                raise _wrong(origin, document, errors)
            graphs.append(GraphDocument(result, violations, others))
    if not graphs:
        kinds = sorted({str(document.get("kind")) for document in documents})
        raise ConfigError(
            f"{origin} holds no {KIND}" + (f", only {', '.join(kinds)}" if kinds else ""),
            hint=f"a graph begins with apiVersion: {API_VERSION} and kind: {KIND}",
        )
    return graphs


def read_graph(
    document: Mapping[str, Any], *, strict: bool = True
) -> tuple[DynamoGraphDeployment | None, list[Violation]]:
    """Read one document: the graph, unless its fields cannot be read, and all violations, warnings included.

    The admission webhook calls it with what the API server sends.
    """
    version = document.get("apiVersion")
    if version == BETA_API_VERSION:
        violations, beta = _parse(BetaDeployment, document, strict=strict)
        if beta is None:
            return None, violations
        violations += check_references(beta)
        converted = to_v1alpha1(beta)
        more, graph = _parse(DynamoGraphDeployment, converted, strict=False)
        more += validate_graph(graph) if graph is not None else []
        return graph, violations + [_beta_path(violation) for violation in more]
    if version != API_VERSION:
        rule = f"must be {API_VERSION}"
        return None, [Violation("apiVersion", version, rule, f"{BETA_API_VERSION} is read, too")]
    violations, graph = _parse(DynamoGraphDeployment, document, strict=strict)
    return graph, violations + (validate_graph(graph) if graph is not None else [])


def _parse(model: type[Any], document: Mapping[str, Any], *, strict: bool) -> tuple[list[Violation], Any]:
    violations = [v for v in check_fields(model, document) if strict or v.severity == "warning"]
    parsed = parse_model(model, document)
    if isinstance(parsed, GraphModel):
        return violations, parsed
    return violations + parsed, None


def _beta_path(violation: Violation) -> Violation:
    return violation._replace(path=violation.path.replace("spec.services", "spec.components", 1))


def _wrong(origin: str, document: Mapping[str, Any], errors: list[Violation]) -> ConfigError:
    name = (document.get("metadata") or {}).get("name", "without a name")
    lines = "".join(f"\n  {violation}" for violation in errors)
    return ConfigError(
        f"{origin}: graph {name} is wrong:{lines}",
        param=errors[0].path,
        details={"violations": [{**error._asdict(), "value": error.shown_value} for error in errors]},
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read graph file {path}: {error.strerror}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"graph file {path} is not UTF-8 text: {error}") from error


def _documents(text: str, origin: str) -> list[dict[str, Any]]:
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"{origin} is larger than {_MAX_BYTES} bytes", hint="split the file")
    try:
        documents = [document for document in yaml.load_all(_NamedText(text, origin), _Loader) if document is not None]
        for document in documents:
            _check_size(document, origin)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    objects = [item for document in documents for item in _items(document)]
    for item in objects:
        if not isinstance(item, dict) or not isinstance(item.get("metadata") or {}, dict):
            raise ConfigError(f"{origin}: expected Kubernetes objects, got {str(item)[:60]!r}")
    return objects


def _items(document: Any) -> list[Any]:
    """The objects of a ``List``, as kubectl writes it, or the document itself."""
    if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
        return list(document["items"])
    return [document]


def _check_size(document: Any, origin: str) -> None:
    nodes = 0
    stack = [(document, 0)]
    while stack:
        value, depth = stack.pop()
        nodes += 1
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise ConfigError(f"{origin}: a document is too large or nested too deeply")
        if isinstance(value, dict):
            stack.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            stack.extend((item, depth + 1) for item in value)


class _NamedText(io.StringIO):
    """A text that YAML errors call by its file's name."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: no dates, keys are strings and come once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise self._refuse(key, "is not a string; put it in quotes")
            if key.value in seen:
                raise self._refuse(key, "comes twice in one map")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def _refuse(self, key: yaml.Node, reason: str) -> yaml.YAMLError:
        return yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} {reason}", key.start_mark)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
