"""What each service of our manifests runs as a process."""

import pytest

from dynamo.errors import ConfigError
from dynamo.graph import load_graphs, resolve_components
from dynamo.graph.environment import dynamo_namespace
from dynamo.protocols.scheduling import ComponentSpec


def noted(notes, component):
    return {note.subject: note.message for note in notes if note.component == component}


def test_the_introductions_form(resolve):
    components, notes = resolve("introduction")
    assert components["Frontend"] == ComponentSpec(
        name="Frontend",
        argv=("python3", "-m", "dynamo.frontend"),
        kind="frontend",
        env={
            "DYN_NAMESPACE": "default-my-llm",
            "DYN_PARENT_DGD_K8S_NAME": "my-llm",
            "DYN_PARENT_DGD_K8S_NAMESPACE": "default",
            "DYN_COMPONENT": "frontend",
            "DYNAMO_PORT": "8000",
            "DYN_HTTP_PORT": "8000",
            "DYN_ROUTER_MODE": "kv",
        },
    )
    worker = components["VllmWorker"]
    assert worker.argv == ("python3", "-m", "dynamo.vllm", "--model", "org/model")
    assert (worker.kind, worker.replicas, worker.resources) == ("worker", 2, {"gpu": "1"})
    assert worker.env["DYN_SYSTEM_PORT"] == "9090"
    assert worker.env["DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS"] == '["generate"]'
    assert noted(notes, "VllmWorker") == {
        "image": "example.com/runtime:1 is not used: the component runs in this Python environment",
        "envFrom": "Secret hf-token exists in a cluster only; set its variables in your environment",
    }


def test_shell_commands(resolve):
    components, _ = resolve("sh_c")
    assert components["Block"].argv == (
        "/bin/sh",
        "-c",
        """python3 -m dynamo.vllm --model org/model --kv-events-config '{"enable_kv_cache_events":true}'""",
    )
    assert components["Split"].argv == (
        "/bin/sh",
        "-c",
        """python3 -m dynamo.sglang --model-path "$MODEL" --json '{"a": 1}'""",
    )
    assert components["Implied"].argv == ("/bin/sh", "-c", "exec python3 -m dynamo.vllm --model x")
    assert components["Block"].working_directory == "/workspace"
    assert components["Block"].stop_grace_seconds == 90.0
    assert components["Split"].stop_grace_seconds == ComponentSpec("x", ()).stop_grace_seconds


def test_env_precedence(resolve):
    components, _ = resolve("sh_c", LEVEL="base", NATS_SERVER="nats://base", DYN_COMPONENT="base")
    block, split = components["Block"].env, components["Split"].env
    assert block["LEVEL"] == "service"
    assert split["LEVEL"] == "graph"
    assert block["ONLY_CONTAINER"] == "yes"
    assert block["NATS_SERVER"] == "nats://base"
    assert block["DYN_COMPONENT"] == "worker"
    assert block["MODEL_URL"] == "hf://org/model"
    assert "ONLY_CONTAINER" not in split


def test_namespace_has_no_dots(resolve):
    components, _ = resolve("sh_c")
    assert {c.env["DYN_NAMESPACE"] for c in components.values()} == {"team-a-shell"}
    assert {c.env["DYN_PARENT_DGD_K8S_NAMESPACE"] for c in components.values()} == {"team.a"}


def test_default_commands(resolve):
    components, _ = resolve("args_only")
    assert {name: component.argv for name, component in components.items()} == {
        "Flags": ("python3", "-m", "dynamo.frontend", "--router-mode", "kv"),
        "Module": ("python3", "-m", "dynamo.frontend", "--http-port", "8001"),
        "Command": ("python3", "-m", "dynamo.frontend"),
        "Worker": ("python3", "-m", "dynamo.vllm", "--model", "org/model"),
        "Bare": ("python3", "-m", "dynamo.vllm"),
    }


def test_disaggregation_and_resources(resolve):
    components, notes = resolve("disagg")
    assert {name: (c.kind, c.replicas) for name, c in components.items()} == {
        "Frontend": ("frontend", 1),
        "Planner": ("planner", 1),
        "Prefill": ("prefill", 2),
        "Decode": ("decode", 0),
    }
    assert components["Prefill"].resources == {
        "cpu": "4",
        "memory": "8Gi",
        "gpu": "2",
        "rdma/ib": "1",
        "ephemeral-storage": "2Gi",
    }
    assert components["Planner"].env["PLANNER_PROMETHEUS_PORT"] == "9085"
    assert "planner-data" in noted(notes, "Planner")["volumes"]


def test_multinode_and_values_that_only_a_cluster_has(resolve):
    components, notes = resolve("multinode", HF_TOKEN="from serve")
    decode = components["decode"]
    assert decode.argv[3:] == ("--tp-size", "8", "--host", "127.0.0.1", "--price", "$(HOST)")
    assert decode.env["URL"] == "http://127.0.0.1:80"
    assert decode.env["WHERE"] == "default"
    assert decode.env["HF_TOKEN"] == "from serve"
    assert "POD" not in decode.env
    assert noted(notes, "decode") == {
        "env HF_TOKEN": "is key TOKEN of Secret hf-token; here it is inherited from the environment, if set there",
        "env POD": "is field metadata.name of the pod; here it is inherited from the environment, if set there",
        "multinode": "2 nodes per replica exist in containers only; one process runs instead",
    }


def test_claims_and_shared_memory(resolve):
    _, notes = resolve("pvc")
    assert noted(notes, "") == {"pvcs": "claims exist in a cluster only: model-cache, compiled"}
    assert noted(notes, "Worker") == {
        "volumes": "not mounted: compiled, scratch; paths below their mount points are this machine's own",
        "sharedMemory": "exists in a cluster only",
    }


def test_probes_sidecars_and_types_without_meaning(resolve):
    components, notes = resolve("probes")
    assert {name: c.kind for name, c in components.items()} == {
        "Frontend": "frontend",
        "Main": "worker",
        "Untyped": "frontend",
    }
    assert components["Main"].argv == ("/bin/bash", "-lc", "python3 -m dynamo.echo")
    assert components["Frontend"].env["EMPTY"] == ""
    assert noted(notes, "Main") == {
        "probes": "processes are asked on their system port instead",
        "containers": "only the main container runs: not helper",
    }
    assert noted(notes, "Untyped") == {}


def test_gateways(resolve):
    components, notes = resolve("gateway")
    assert list(components) == ["Worker", "Worker-sidecar-frontend"]
    sidecar = components["Worker-sidecar-frontend"]
    assert sidecar.argv == ("python3", "-m", "dynamo.frontend", "--router-mode", "direct")
    assert sidecar.kind == "frontend"
    assert sidecar.env["SIDE"] == "car"
    assert sidecar.env["DYN_NAMESPACE"] == components["Worker"].env["DYN_NAMESPACE"] == "dynamo"
    assert "inference gateway" in noted(notes, "Epp")["epp"]
    assert {"gpuMemoryService", "failover", "frontendSidecar"} <= set(noted(notes, "Worker"))


def test_a_service_that_does_not_say_what_to_run():
    text = "{apiVersion: nvidia.com/v1alpha1, kind: DynamoGraphDeployment, metadata: {name: g}, spec: {services: {W: {componentType: worker}}}}"
    (document,) = load_graphs(text)
    with pytest.raises(ConfigError, match="service W does not say what to run") as caught:
        resolve_components(document.graph)
    assert caught.value.param == "spec.services.W.extraPodSpec.mainContainer.command"


def test_the_older_name_of_the_namespace_variable_is_heard():
    text = """
apiVersion: nvidia.com/v1alpha1
kind: DynamoGraphDeployment
metadata: {name: g}
spec:
  envs: [{name: DYNAMO_NAMESPACE, value: mine}]
  services:
    Frontend: {componentType: frontend}
    Other: {componentType: frontend, envs: [{name: DYN_NAMESPACE, value: theirs}]}
"""
    (document,) = load_graphs(text)
    frontend, other = resolve_components(document.graph).components
    assert frontend.env["DYN_NAMESPACE"] == "mine"
    assert other.env["DYN_NAMESPACE"] == "theirs"


def test_long_namespaces_are_shortened_to_what_the_runtime_takes(load):
    graph = load("introduction").graph
    service = graph.spec.services["Frontend"]

    def namespace(name):
        metadata = graph.metadata.model_copy(update={"name": name})
        return dynamo_namespace(graph.model_copy(update={"metadata": metadata}), service)

    long, other = namespace("a" * 80), namespace("a" * 79 + "b")
    assert len(long) == len(other) == 63
    assert long != other
    assert namespace("a" * 55) == "default-" + "a" * 55


def test_resolving_is_pure(load):
    graph = load("multinode").graph
    before = graph.to_document()
    assert resolve_components(graph) == resolve_components(graph)
    assert graph.to_document() == before
