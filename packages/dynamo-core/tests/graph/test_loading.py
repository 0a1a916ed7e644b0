"""Files: several documents, other kinds, and text that is hostile or no YAML."""

import json

import pytest

from dynamo.errors import ConfigError
from dynamo.graph import load_graphs

GRAPH = """
apiVersion: nvidia.com/v1alpha1
kind: DynamoGraphDeployment
metadata: {name: NAME}
spec: {services: {Frontend: {componentType: frontend}}}
"""


def test_several_documents_and_other_kinds():
    text = "---\n".join(
        [GRAPH.replace("NAME", "a"), "", "{kind: Secret, metadata: {name: s}}\n", GRAPH.replace("NAME", "b")]
    )
    documents = load_graphs(text)
    assert [document.graph.name for document in documents] == ["a", "b"]
    assert [(other.kind, other.name) for other in documents[0].others] == [("Secret", "s")]
    assert documents[0].others == documents[1].others


def test_companions_keep_their_document(load):
    (config,) = load("disagg").others
    assert (config.kind, config.name) == ("ConfigMap", "planner-data")
    assert config.document["data"] == {"prefill.yaml": "a: 1"}


def test_json_and_lists(load):
    graph = load("introduction").graph.to_document()
    (document,) = load_graphs(json.dumps({"apiVersion": "v1", "kind": "List", "items": [graph]}))
    assert document.graph.to_document() == graph


def test_warnings_come_with_the_graph(load):
    document = load("legacy")
    assert [(w.path, w.severity) for w in document.warnings] == [
        ("spec.dynamoGraph", "warning"),
        ("spec.services.Planner.dynamoNamespace", "warning"),
        ("spec.services.Planner.autoscaling", "warning"),
        ("spec.services.Planner.pvc", "warning"),
        ("spec.services.Planner.scalingAdapter", "warning"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "graph holds no DynamoGraphDeployment"),
        ("{kind: Deployment}", "only Deployment"),
        ("kind: [", "not valid YAML"),
        ("just text", "expected Kubernetes objects"),
        ("{kind: List, items: [text]}", "expected Kubernetes objects"),
        ("{kind: List, items: [{metadata: []}, {metadata: x}]}", "expected Kubernetes objects"),
        ("- a", "expected Kubernetes objects"),
        ("{kind: X, metadata: []}", "graph holds no"),
        ("{kind: X, metadata: text}", "expected Kubernetes objects"),
        ("{kind: X, kind: Y}", "the key 'kind' comes twice in one map"),
        ("{kind: X, spec: {1: a}}", "the key '1' is not a string; put it in quotes"),
        ("{kind: X, spec: {yes: a}}", "the key 'yes' is not a string"),
        ("{kind: !!python/object/apply:os.system [id]}", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("a: " + "[" * 200 + "]" * 200, "nested too deeply"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: \x00", "not valid YAML"),
        ("x" * (3 * 1024 * 1024 + 1), "larger than"),
    ],
)
def test_refused_text(text, message):
    with pytest.raises(ConfigError) as caught:
        load_graphs(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["kind: [", "a: b: c", "a: \x07", "{kind: X, kind: Y}", "{1: a}"])
def test_a_yaml_error_names_the_file_and_the_place(tmp_path, text):
    path = tmp_path / "graph.yaml"
    path.write_text(f"# a graph\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_graphs(path)
    assert f'in "{path}", ' in caught.value.message
    assert "unicode string" not in caught.value.message


@pytest.mark.parametrize(
    ("kind", "meant"), [("wurker", "worker"), ("Frontend", "frontend"), ("prefil", "prefill"), ("decoder", "decode")]
)
def test_a_type_that_is_nearly_a_known_one_is_named(kind, meant):
    text = GRAPH.replace("componentType: frontend}", f"componentType: frontend}}, Odd: {{componentType: {kind}}}")
    text = text.replace("NAME", "g")
    (document,) = load_graphs(text)
    (warning,) = [warning for warning in document.warnings if warning.path == "spec.services.Odd.componentType"]
    assert warning.hint == f"did you mean {meant!r}?"
    assert warning.severity == "warning"


@pytest.mark.parametrize("kind", ["main", "default", "encode", "my-own-part"])
def test_a_type_may_be_any_text(kind):
    text = GRAPH.replace("componentType: frontend}", f"componentType: frontend}}, Odd: {{componentType: {kind}}}")
    assert load_graphs(text.replace("NAME", "g"))[0].warnings == []


def test_aliases_that_multiply_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="too large"):
        load_graphs("\n".join(lines))


def test_merge_keys_may_be_overridden():
    text = """
apiVersion: nvidia.com/v1alpha1
kind: DynamoGraphDeployment
metadata: {name: g}
spec:
  services:
    A: &a {componentType: worker, replicas: 1}
    B: {<<: *a, replicas: 2}
"""
    (document,) = load_graphs(text)
    services = document.graph.spec.services
    assert (services["B"].component_type, services["B"].replicas) == ("worker", 2)


def test_dates_stay_text():
    text = GRAPH.replace("NAME", "g, annotations: {day: 2024-01-02}")
    assert load_graphs(text)[0].graph.metadata.annotations == {"day": "2024-01-02"}


def test_files(tmp_path):
    with pytest.raises(ConfigError, match="cannot read graph file"):
        load_graphs(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot read graph file"):
        load_graphs(tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_graphs(bad)
    bad.write_text(GRAPH.replace("NAME", "g").replace("services", "servces"))
    with pytest.raises(ConfigError, match=r"bad.yaml: graph g is wrong:\n  spec.servces: is not a field"):
        load_graphs(bad)
