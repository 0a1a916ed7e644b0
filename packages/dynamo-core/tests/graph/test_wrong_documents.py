"""Each wrong graph: where exactly, which value, which rule, and what the hint says."""

import copy

import pytest
import yaml

from dynamo.errors import ConfigError
from dynamo.graph import load_graphs, read_graph

GRAPH = {
    "apiVersion": "nvidia.com/v1alpha1",
    "kind": "DynamoGraphDeployment",
    "metadata": {"name": "g"},
    "spec": {
        "services": {
            "Frontend": {"componentType": "frontend", "extraPodSpec": {"mainContainer": {"image": "i"}}},
            "Worker": {"componentType": "worker", "resources": {"limits": {"gpu": "1"}}},
        }
    },
}
FRONTEND = "spec.services.Frontend"
WORKER = "spec.services.Worker"
MAIN = f"{FRONTEND}.extraPodSpec.mainContainer"


def put(path, value):
    """GRAPH with `value` at `path`; missing maps on the way are made."""
    document = copy.deepcopy(GRAPH)
    *parents, last = path.split(".")
    place = document
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return document


# where it is put, value, and then: path, shown value, rule, hint (each the whole text)
ERRORS = [
    # unknown fields
    (f"{FRONTEND}.replica", 2, None, 2, "is not a field", "did you mean 'replicas'?"),
    (f"{FRONTEND}.componenttype", "x", None, "x", "is not a field", "did you mean 'componentType'?"),
    (f"{FRONTEND}.env", [], None, [], "is not a field", "did you mean 'envs'?"),
    (f"{FRONTEND}.image", "i", None, "i", "is not a field", f"move it to {MAIN}.image"),
    (f"{FRONTEND}.args", ["a"], None, ["a"], "is not a field", f"move it to {MAIN}.args"),
    (f"{FRONTEND}.command", ["a"], None, ["a"], "is not a field", f"move it to {MAIN}.command"),
    (f"{FRONTEND}.tolerations", [], None, [], "is not a field", f"move it to {FRONTEND}.extraPodSpec.tolerations"),
    (f"{FRONTEND}.extraPodSpec.command", ["a"], None, ["a"], "is not a field", f"move it to {MAIN}.command"),
    (f"{MAIN}.workdir", "/", None, "/", "is not a field", "did you mean 'workingDir'?"),
    (f"{MAIN}.envs", [], None, [], "is not a field", "did you mean 'env'?"),
    (f"{WORKER}.resources.limits.gpus", "1", None, "1", "is not a field", "did you mean 'gpu'?"),
    (
        f"{WORKER}.resources.limits.nvidia",
        "1",
        None,
        "1",
        "is not a field",
        "known fields: cpu, custom, gpu, gpuType, memory",
    ),
    ("spec.service", {}, None, {}, "is not a field", "did you mean 'services'?"),
    ("spec.components", [], None, [], "is not a field", "v1alpha1 calls it 'services', a map by name"),
    ("services", {}, None, {}, "is not a field", "move it to spec.services"),
    ("metadata.lables", {}, None, {}, "is not a field", "did you mean 'labels'?"),
    (
        f"{FRONTEND}.envs",
        [{"name": "a", "val": "b"}],
        f"{FRONTEND}.envs[0].val",
        "b",
        "is not a field",
        "did you mean 'value'?",
    ),
    # values
    (f"{FRONTEND}.replicas", "2", None, "2", "must be a whole number", "take it out of its quotes: 2"),
    (f"{FRONTEND}.replicas", -1, None, -1, "must be greater than or equal to 0", ""),
    (f"{FRONTEND}.replicas", True, None, True, "must be a whole number", ""),
    (f"{FRONTEND}.replicas", 1.5, None, 1.5, "must be a whole number", ""),
    (f"{WORKER}.resources.limits.gpu", 1, None, 1, "must be a string", 'put it in quotes: "1"'),
    (
        f"{FRONTEND}.envs",
        [{"name": "a", "value": True}],
        f"{FRONTEND}.envs[0].value",
        True,
        "must be a string",
        'put it in quotes: "true"',
    ),
    (f"{FRONTEND}.envs", [{"value": "b"}], f"{FRONTEND}.envs[0].name", None, "is required", ""),
    (f"{FRONTEND}.envs", {"a": "b"}, None, {"a": "b"}, "must be a list", ""),
    (f"{MAIN}.args", "--model x", None, "--model x", "must be a list", ""),
    (f"{MAIN}.args", ["--tp", 2], f"{MAIN}.args[1]", 2, "must be a string", 'put it in quotes: "2"'),
    (f"{MAIN}.ports", [{"containerPort": 0}], f"{MAIN}.ports[0].containerPort", 0, "must be greater than 0", ""),
    (
        f"{FRONTEND}.livenessProbe",
        {"httpGet": {"port": []}},
        f"{FRONTEND}.livenessProbe.httpGet.port",
        [],
        "must be a whole number or a string",
        "",
    ),
    (f"{FRONTEND}.extraPodSpec", "x", None, "x", "must be a map", ""),
    ("spec.services.Nothing", None, None, None, "must be a map", ""),
    ("spec.services", None, None, None, "must hold at least one service", "add a frontend and a worker"),
    ("spec.backendFramework", "tgi", None, "tgi", "must be 'sglang', 'vllm' or 'trtllm'", ""),
    ("metadata.name", "", None, "", "must not be empty", ""),
    ("metadata", {}, "metadata.name", None, "is required", ""),
    ("spec", None, None, None, "is required", ""),
    (
        f"{WORKER}.multinode",
        {"nodeCount": 1},
        f"{WORKER}.multinode.nodeCount",
        1,
        "must be greater than or equal to 2",
        "",
    ),
    # names
    (
        "metadata.name",
        "My_Graph",
        None,
        "My_Graph",
        "is not a name that Kubernetes takes",
        "use lower-case letters, digits and '-'",
    ),
    (
        "spec.services.my_worker",
        {"replicas": 1},
        None,
        "my_worker",
        "is not a name that Kubernetes takes",
        "use letters, digits and '-' between them",
    ),
    (
        "spec.services.frontend",
        {"replicas": 1},
        None,
        "frontend",
        "has the same lower-case name as 'Frontend'",
        "rename one of the two",
    ),
    (
        f"spec.services.{'w' * 62}",
        {},
        None,
        "w" * 62,
        f"makes the name 'g-{'w' * 62}' of 64 characters; 63 is the limit",
        "shorten the graph's or the service's name",
    ),
    # several fields
    (
        "spec.pvcs",
        [{"name": "a", "create": True, "size": "1Gi", "volumeAccessMode": "ReadWriteOnce"}],
        "spec.pvcs[0].storageClass",
        None,
        "is required with create: true",
        "or make the claim yourself and set create: false",
    ),
    ("spec.pvcs", [{"create": False}], "spec.pvcs[0].name", None, "is required", ""),
    (
        "spec.restart",
        {"id": "1", "strategy": {"type": "Parallel", "order": ["Frontend", "Worker"]}},
        "spec.restart.strategy.order",
        ["Frontend", "Worker"],
        "has no meaning with type: Parallel",
        "remove it, or use type: Sequential",
    ),
    (
        "spec.restart",
        {"id": "1", "strategy": {"order": ["Frontend", "Worker", "Router"]}},
        "spec.restart.strategy.order",
        "Router",
        "names no service of the graph",
        "services: Frontend, Worker",
    ),
    (
        "spec.restart",
        {"id": "1", "strategy": {"order": ["Frontend", "Worker", "Worker"]}},
        "spec.restart.strategy.order",
        "Worker",
        "names a service twice",
        "",
    ),
    (
        "spec.restart",
        {"id": "1", "strategy": {"order": ["Frontend"]}},
        "spec.restart.strategy.order",
        ["Frontend"],
        "must name every service",
        "add Worker",
    ),
    (
        "spec.topologyConstraint",
        {"topologyProfile": "p"},
        "spec.topologyConstraint.packDomain",
        None,
        "is required where no service has a topologyConstraint of its own",
        "",
    ),
    (
        "spec.experimental.kvTransferPolicy",
        {"domain": "zone"},
        None,
        None,
        "needs exactly one of labelKey and clusterTopologyName",
        "",
    ),
    (
        "spec.experimental.kvTransferPolicy",
        {"domain": "zone", "labelKey": "k", "preferredWeight": 0.5},
        "spec.experimental.kvTransferPolicy.preferredWeight",
        0.5,
        "is required with enforcement: preferred, and only there",
        "",
    ),
    (f"{WORKER}.minAvailable", 2, None, 2, "must be at most replicas (1)", ""),
    (
        f"{FRONTEND}.ingress",
        {"enabled": True},
        f"{FRONTEND}.ingress.host",
        None,
        "is required where the ingress is enabled",
        "",
    ),
    (
        f"{WORKER}.volumeMounts",
        [{"name": "c"}],
        f"{WORKER}.volumeMounts[0].mountPoint",
        None,
        "is required",
        "unless useAsCompilationCache is true",
    ),
    (f"{WORKER}.sharedMemory", {}, f"{WORKER}.sharedMemory.size", None, "is required", "or set disabled: true"),
    (
        f"{FRONTEND}.eppConfig",
        {"config": {}},
        None,
        None,
        "belongs to a service with componentType: epp",
        "",
    ),
    (
        f"{WORKER}.checkpoint",
        {"checkpointRef": "c", "job": {}},
        f"{WORKER}.checkpoint.job",
        None,
        "cannot be combined with checkpointRef",
        "remove one of them",
    ),
    (
        f"{WORKER}.resources.limits.memory",
        "16 GB",
        None,
        "16 GB",
        "is not a quantity",
        "write it as in 500m, 2 or 16Gi",
    ),
    (f"{WORKER}.resources.limits.gpu", "half", None, "half", "is not a whole number of GPUs", 'write it as in "1"'),
    (
        f"{MAIN}.resources",
        {"limits": {"cpu": "two"}},
        f"{MAIN}.resources.limits.cpu",
        "two",
        "is not a quantity",
        "as in 500m or 16Gi",
    ),
    (
        f"{FRONTEND}.envs",
        [{"name": "a", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "f"}}}],
        f"{FRONTEND}.envs[0]",
        "a",
        "has both value and valueFrom",
        "remove one of them",
    ),
    ("spec.envs", [{"name": "a=b"}], "spec.envs[0].name", "a=b", "is not a variable name", "it may not hold '='"),
    (
        f"{FRONTEND}.extraPodSpec.containers",
        [{"name": "main"}],
        f"{FRONTEND}.extraPodSpec.containers[0].name",
        "main",
        "is taken by a container that the operator makes",
        "",
    ),
    (
        f"{FRONTEND}.extraPodSpec.containers",
        [{"image": "i"}],
        f"{FRONTEND}.extraPodSpec.containers[0].name",
        None,
        "is required",
        "",
    ),
    (f"{FRONTEND}.frontendSidecar", {}, f"{FRONTEND}.frontendSidecar.image", None, "is required", ""),
    (
        f"{WORKER}.failover",
        {"enabled": True},
        None,
        None,
        "needs the GPU memory service with the same mode",
        "add gpuMemoryService with enabled: true and mode: intraPod",
    ),
    (
        f"{WORKER}.runtimeVersionOverride",
        "1.0",
        None,
        "1.0",
        r"must match pattern '^\d+\.\d+\.\d+$'",
        "",
    ),
]


@pytest.mark.parametrize(("at", "given", "path", "value", "rule", "hint"), ERRORS)
def test_error(at, given, path, value, rule, hint):
    _, violations = read_graph(put(at, given))
    assert [(v.path, v.value, v.rule, v.hint, v.severity) for v in violations] == [
        (path or at, value, rule, hint, "error")
    ]


def test_gpu_memory_service_is_for_workers_with_gpus():
    document = put(f"{FRONTEND}.gpuMemoryService", {"enabled": True})
    document["spec"]["services"]["Frontend"]["failover"] = {"enabled": True, "numShadows": 2}
    _, violations = read_graph(document)
    assert [(v.path, v.rule) for v in violations] == [
        (f"{FRONTEND}.gpuMemoryService", "is for workers only"),
        (f"{FRONTEND}.gpuMemoryService", "needs a GPU limit"),
        (f"{FRONTEND}.failover.numShadows", "must be 1 with mode: intraPod"),
    ]


def test_an_epp_is_alone_runs_once_and_is_configured():
    document = put("spec.services.Epp", {"componentType": "epp", "replicas": 2})
    document["spec"]["services"]["Other"] = {"componentType": "epp", "eppConfig": {"config": {}}}
    _, violations = read_graph(document)
    assert [(v.path, v.value, v.rule) for v in violations] == [
        ("spec.services.Other.componentType", "epp", "only one service of a graph may be an epp"),
        ("spec.services.Epp.eppConfig", None, "needs exactly one of config and configMapRef"),
        ("spec.services.Epp.replicas", 2, "an epp runs once, on one node"),
    ]


def test_too_many_services():
    document = put("spec.services", {f"w{index}": {} for index in range(26)})
    _, violations = read_graph(document)
    assert [(v.path, v.value, v.rule) for v in violations] == [("spec.services", 26, "must hold at most 25 services")]


WARNINGS = [
    (
        f"{WORKER}.pvc",
        {"name": "c"},
        "is obsolete and has no effect",
        "list the claim in spec.pvcs and mount it with volumeMounts",
    ),
    (
        f"{WORKER}.dynamoNamespace",
        "n",
        "is obsolete and has no effect",
        "remove it: processes of one graph share a namespace made of its name",
    ),
    (
        f"{WORKER}.autoscaling",
        {"enabled": True},
        "is obsolete and has no effect",
        "use scalingAdapter with enabled: true, or a planner",
    ),
    (
        "spec.dynamoGraph",
        "g",
        "is obsolete and has no effect",
        "remove it: graphs are not built from an archive any more",
    ),
    (
        f"{WORKER}.extraPodSpec.envs",
        [{"name": "a"}],
        "is in the wrong place",
        "move it up, envs belongs to the service: a cluster drops it here",
    ),
]


@pytest.mark.parametrize(("path", "value", "rule", "hint"), WARNINGS)
@pytest.mark.parametrize("strict", [True, False])
def test_warning(path, value, rule, hint, strict):
    graph, violations = read_graph(put(path, value), strict=strict)
    assert graph is not None
    assert violations == [(path, value, rule, hint, "warning")]


def test_an_adapter_without_enabled_is_said_to_be_off():
    _, violations = read_graph(put(f"{WORKER}.scalingAdapter", {}))
    assert [(v.path, v.rule, v.severity) for v in violations] == [
        (f"{WORKER}.scalingAdapter", "is off without enabled: true", "warning")
    ]


def test_names_too_long_for_grove_are_a_warning():
    _, violations = read_graph(put(f"spec.services.{'w' * 45}", {}))
    assert [(v.rule, v.severity) for v in violations] == [
        ("needs 46 characters of names; with Grove 45 is the limit", "warning")
    ]


def test_without_strict_unknown_fields_are_dropped_and_values_still_checked():
    document = put(f"{FRONTEND}.replica", 2)
    graph, violations = read_graph(document, strict=False)
    assert violations == []
    assert graph.to_document() == GRAPH
    document["spec"]["services"]["Frontend"]["replicas"] = "2"
    graph, violations = read_graph(document, strict=False)
    assert graph is None
    assert [v.path for v in violations] == [f"{FRONTEND}.replicas"]


def test_snake_case_is_not_understood():
    graph, violations = read_graph(put(f"{FRONTEND}.component_type", "worker"))
    assert graph.spec.services["Frontend"].component_type == "frontend"
    assert [(v.path, v.hint) for v in violations] == [(f"{FRONTEND}.component_type", "did you mean 'componentType'?")]


@pytest.mark.parametrize("version", ["nvidia.com/v1", "v1alpha1", None, 3])
def test_other_versions_are_refused_by_name(version):
    graph, violations = read_graph(put("apiVersion", version))
    assert graph is None
    assert violations == [
        ("apiVersion", version, "must be nvidia.com/v1alpha1", "nvidia.com/v1beta1 is read, too", "error")
    ]


def test_load_graphs_lists_everything_that_is_wrong():
    document = put(f"{FRONTEND}.replica", 2)
    document["spec"]["services"]["Worker"]["replicas"] = "two"
    with pytest.raises(ConfigError) as caught:
        load_graphs(yaml.safe_dump(document))
    assert caught.value.message == (
        "graph: graph g is wrong:"
        "\n  spec.services.Frontend.replica: is not a field (got 2); did you mean 'replicas'?"
        "\n  spec.services.Worker.replicas: must be a whole number (got 'two')"
    )
    assert caught.value.param == "spec.services.Frontend.replica"
    assert [item["path"] for item in caught.value.details["violations"]] == [
        "spec.services.Frontend.replica",
        "spec.services.Worker.replicas",
    ]


def test_long_values_are_cut_in_messages():
    with pytest.raises(ConfigError) as caught:
        load_graphs(yaml.safe_dump(put(f"{FRONTEND}.imagee", "x" * 500)))
    assert len(caught.value.message) < 300
