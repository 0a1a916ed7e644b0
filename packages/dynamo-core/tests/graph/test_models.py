"""What goes in comes out: documents survive the models, unknown fields do not."""

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dynamo.graph import DynamoGraphDeployment, load_graphs, read_graph
from dynamo.graph.service import ServiceSpec

OWN = ["introduction", "sh_c", "args_only", "disagg", "multinode", "pvc", "legacy", "gateway"]


@pytest.mark.parametrize("name", OWN)
def test_manifests_survive_the_models(data, name):
    raw = [d for d in yaml.safe_load_all((data / f"{name}.yaml").read_text()) if d["kind"] == "DynamoGraphDeployment"]
    (document,) = load_graphs(data / f"{name}.yaml")
    assert [document.graph.to_document()] == raw


def test_null_means_absent(load):
    frontend = load("probes").graph.spec.services["Frontend"]
    assert frontend.readiness_probe.exec is None
    assert frontend.readiness_probe.to_document() == {"httpGet": {"path": "/health", "port": "http"}}


def test_opaque_objects_keep_everything():
    pod = {
        "affinity": {"anything": [{"at": None}]},
        "tolerations": [{"x": 1}],
        "setHostnameAsFQDN": True,
        "hostIPC": True,
    }
    service = ServiceSpec.model_validate({"extraPodSpec": pod})
    assert service.to_document() == {"extraPodSpec": pod}


@pytest.mark.parametrize(
    ("component_type", "sub_type", "role"),
    [
        ("worker", "prefill", "prefill"),
        ("worker", "decode", "decode"),
        ("worker", None, "worker"),
        (None, "decode", "decode"),
        ("decode", "prefill", "decode"),
        ("frontend", "decode", "frontend"),
        ("worker", "other", "worker"),
        (None, None, None),
    ],
)
def test_role(component_type, sub_type, role):
    service = ServiceSpec.model_validate({"componentType": component_type, "subComponentType": sub_type})
    assert service.role == role


names = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,8}", fullmatch=True)
text = st.text(max_size=20)
env = st.lists(st.fixed_dictionaries({"name": names}, optional={"value": text}), max_size=3)
quantities = st.sampled_from(["1", "500m", "16Gi", "2.5", "1e3"])
containers = st.fixed_dictionaries(
    {},
    optional={
        "image": text,
        "command": st.lists(text, max_size=3),
        "args": st.lists(text, max_size=3),
        "env": env,
        "ports": st.lists(st.fixed_dictionaries({"containerPort": st.integers(1, 65535)}), max_size=2),
        "securityContext": st.dictionaries(names, st.integers() | text | st.none(), max_size=2),
        "startupProbe": st.fixed_dictionaries(
            {}, optional={"httpGet": st.fixed_dictionaries({"port": st.integers() | text})}
        ),
    },
)
services = st.fixed_dictionaries(
    {},
    optional={
        "componentType": st.sampled_from(["frontend", "worker", "planner", "default", "main"]),
        "subComponentType": st.sampled_from(["prefill", "decode"]),
        "replicas": st.integers(0, 100),
        "envs": env,
        "resources": st.fixed_dictionaries(
            {}, optional={"limits": st.fixed_dictionaries({}, optional={"cpu": quantities, "gpu": st.just("1")})}
        ),
        "extraPodSpec": st.fixed_dictionaries(
            {}, optional={"mainContainer": containers, "nodeSelector": st.dictionaries(names, text, max_size=2)}
        ),
        "multinode": st.fixed_dictionaries({}, optional={"nodeCount": st.integers(2, 9)}),
        "labels": st.dictionaries(names, text, max_size=2),
    },
)
graphs = st.fixed_dictionaries(
    {
        "apiVersion": st.just("nvidia.com/v1alpha1"),
        "kind": st.just("DynamoGraphDeployment"),
        "metadata": st.fixed_dictionaries(
            {"name": st.just("g")}, optional={"labels": st.dictionaries(names, text, max_size=2)}
        ),
        "spec": st.fixed_dictionaries(
            {"services": st.dictionaries(names, services, min_size=1, max_size=3)}, optional={"envs": env}
        ),
    }
)


@given(graphs)
def test_any_graph_survives_the_models_and_yaml(document):
    given_document = copy.deepcopy(document)
    graph = DynamoGraphDeployment.model_validate(document)
    assert document == given_document
    assert graph.to_document() == document
    assert DynamoGraphDeployment.model_validate(yaml.safe_load(yaml.safe_dump(document))) == graph


@given(graphs, names)
def test_an_unknown_field_is_one_error_and_changes_nothing(document, name):
    service = next(iter(document["spec"]["services"].values()))
    expected = copy.deepcopy(document)
    service[f"{name}-unknown"] = 1
    graph, violations = read_graph(document)
    assert graph.to_document() == expected
    assert [v.rule for v in violations if v.path.endswith("-unknown")] == ["is not a field"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | text,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["services", "envs", "name", "replicas", "extraPodSpec", "mainContainer", "args", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_nonsense_ends_in_violations_not_exceptions(spec):
    graph, violations = read_graph(
        {"apiVersion": "nvidia.com/v1alpha1", "kind": "DynamoGraphDeployment", "metadata": {"name": "g"}, "spec": spec}
    )
    assert graph is not None or violations
