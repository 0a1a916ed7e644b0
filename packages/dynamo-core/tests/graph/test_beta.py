"""v1beta1 graphs become v1alpha1 ones that run the same."""

import copy

import pytest
import yaml

from dynamo.graph import load_graphs, read_graph, resolve_components


@pytest.fixture
def document(data):
    return yaml.safe_load((data / "beta.yaml").read_text())


def test_conversion(load):
    graph = load("beta").graph
    assert graph.to_document() == {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": "beta"},
        "spec": {
            "backendFramework": "vllm",
            "envs": [{"name": "LEVEL", "value": "graph"}],
            "topologyConstraint": {"topologyProfile": "topology", "packDomain": "rack"},
            "services": {
                "Frontend": {
                    "componentType": "frontend",
                    "replicas": 1,
                    "extraPodMetadata": {"labels": {"tier": "front"}},
                    "envs": [],
                    "extraPodSpec": {"mainContainer": {"name": "main", "image": "example.com/runtime:1"}},
                },
                "Worker": {
                    "componentType": "decode",
                    "replicas": 2,
                    "sharedMemory": {"disabled": True},
                    "scalingAdapter": {"enabled": True},
                    "volumeMounts": [{"name": "compiled", "mountPoint": "/cache", "useAsCompilationCache": True}],
                    "gpuMemoryService": {"enabled": True, "mode": "interPod"},
                    "failover": {"enabled": True, "mode": "interPod", "numShadows": 2},
                    "frontendSidecar": {
                        "image": "example.com/runtime:1",
                        "args": ["-m", "dynamo.frontend"],
                        "envFromSecret": "hf-token",
                        "envs": [{"name": "SIDE", "value": "car"}],
                    },
                    "envs": [{"name": "LEVEL", "value": "container"}],
                    "extraPodSpec": {
                        "nodeSelector": {"disk": "fast"},
                        "containers": [{"name": "logger", "image": "example.com/logger:1"}],
                        "mainContainer": {
                            "name": "main",
                            "command": ["python3", "-m", "dynamo.vllm"],
                            "args": ["--model", "$(LEVEL)"],
                            "resources": {"limits": {"nvidia.com/gpu": "2"}},
                        },
                    },
                },
            },
        },
    }


def test_a_containers_environment_beats_the_graphs(load):
    components = {c.name: c for c in resolve_components(load("beta").graph).components}
    assert components["Worker"].argv == ("python3", "-m", "dynamo.vllm", "--model", "container")
    assert components["Worker"].resources == {"gpu": "2"}
    assert components["Frontend"].env["LEVEL"] == "graph"


@pytest.mark.parametrize(
    ("change", "path", "rule", "hint"),
    [
        ({"componentType": "worker"}, "spec.components[0].componentType", "is not a field", "v1beta1 calls it 'type'"),
        ({"types": "x"}, "spec.components[0].types", "is not a field", "did you mean 'type'?"),
        ({"type": "main"}, "spec.components[0].type", "must be 'frontend', 'worker'", ""),
        ({"replicas": -1}, "spec.components[0].replicas", "must be greater than or equal to 0", ""),
        ({"name": "a_b"}, "spec.components.a_b", "is not a name that Kubernetes takes", "use letters"),
        ({"minAvailable": 2}, "spec.components.Frontend.minAvailable", "must be at most replicas (1)", ""),
        (
            {"frontendSidecar": "none"},
            "spec.components[0].frontendSidecar",
            "names no container of podTemplate.spec",
            "add the container",
        ),
        ({"name": "Worker"}, "spec.components[1].name", "comes twice", "rename one of the two"),
    ],
)
def test_errors_name_the_place_in_the_users_document(document, change, path, rule, hint):
    document["spec"]["components"][0].update(change)
    _, violations = read_graph(document)
    assert len(violations) == 1
    assert violations[0].path == path
    assert violations[0].rule.startswith(rule)
    assert violations[0].hint.startswith(hint)


def test_services_in_a_v1beta1_document(document):
    document["spec"]["services"] = {}
    graph, violations = read_graph(document)
    assert [(v.path, v.hint) for v in violations] == [("spec.services", "v1beta1 calls it 'components', a list")]
    assert graph is not None


def test_the_document_is_not_changed(document):
    before = copy.deepcopy(document)
    read_graph(document)
    assert document == before


def test_without_strict_unknown_fields_are_dropped(document):
    document["spec"]["components"][0]["unknown"] = 1
    (loaded,) = load_graphs(yaml.safe_dump(document), strict=False)
    assert loaded.warnings == []
