"""v1beta1 graphs, read as v1alpha1 ones.

v1beta1 has a list of components with ordinary pod templates where v1alpha1 has a map of services with fields of its
own. Nothing else in the stack knows the difference: :func:`to_v1alpha1` is called by `dynamo.graph.loading` only.
"""

# ruff: noqa: RUF012  # pydantic copies mutable defaults
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dynamo.graph.deployment import API_VERSION, KIND, Restart
from dynamo.graph.metadata import GraphModel, IntOrString, NonEmpty, ObjectMeta, Opaque
from dynamo.graph.pod import Container, EnvVar, PodSpec
from dynamo.graph.service import (
    Checkpoint,
    EppConfig,
    ExtraPodMetadata,
    ModelRef,
    Multinode,
    PackDomain,
    ServiceTopology,
)
from dynamo.graph.violation import Violation

__all__ = ["BETA_API_VERSION", "BetaDeployment", "check_references", "to_v1alpha1"]

BETA_API_VERSION = "nvidia.com/v1beta1"
_BetaMode = Literal["IntraPod", "InterPod"]
#: Fields that have one name and meaning in both versions.
_SAME = (
    "replicas",
    "minAvailable",
    "multinode",
    "modelRef",
    "eppConfig",
    "topologyConstraint",
    "runtimeVersionOverride",
    "providerOverride",
)
_SAME_OF_GRAPH = ("backendFramework", "annotations", "labels", "restart", "priorityClassName", "providerOverride")


class PodTemplate(GraphModel):
    """A pod as every Kubernetes workload writes it; the container ``main`` runs the component."""

    metadata: ExtraPodMetadata | None = None
    spec: PodSpec | None = None


class CompilationCache(GraphModel):
    """A PersistentVolumeClaim for what engines compile."""

    pvc_name: NonEmpty
    mount_path: str | None = None


class BetaGpuMemoryService(GraphModel):
    """Present means on."""

    mode: _BetaMode = "IntraPod"
    device_class_name: str | None = None
    extra_client_containers: list[Opaque] = []
    extra_client_pods: list[Opaque] = []


class BetaFailover(GraphModel):
    """Present means on."""

    mode: _BetaMode = "IntraPod"
    num_shadows: Annotated[int, Field(ge=1)] = 1


class BetaExperimental(GraphModel):
    """Blocks of a component that may change."""

    gpu_memory_service: BetaGpuMemoryService | None = None
    failover: BetaFailover | None = None
    checkpoint: Checkpoint | None = None
    grove: Opaque | None = None


class BetaComponent(GraphModel):
    """One item of ``spec.components``."""

    hints: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("componentType", "subComponentType"), "v1beta1 calls it 'type'"),
        **dict.fromkeys(("extraPodSpec", "extraPodMetadata"), "v1beta1 calls it 'podTemplate'"),
        **dict.fromkeys(
            ("envs", "envFromSecret", "resources", "livenessProbe", "readinessProbe", "volumeMounts"),
            "in v1beta1 it belongs to the container 'main' of podTemplate.spec",
        ),
        **dict.fromkeys(("annotations", "labels"), "in v1beta1 it belongs to podTemplate.metadata"),
        **dict.fromkeys(("gpuMemoryService", "failover", "checkpoint"), "in v1beta1 it belongs to experimental"),
        "sharedMemory": "v1beta1 calls it 'sharedMemorySize'",
    }

    name: NonEmpty
    type: Literal["frontend", "worker", "prefill", "decode", "planner", "epp"] | None = None
    replicas: Annotated[int, Field(ge=0)] | None = None
    min_available: Annotated[int, Field(ge=1)] | None = None
    pod_template: PodTemplate | None = None
    multinode: Multinode | None = None
    model_ref: ModelRef | None = None
    epp_config: EppConfig | None = None
    frontend_sidecar: str | None = None
    scaling_adapter: Opaque | None = None
    shared_memory_size: IntOrString | None = None
    compilation_cache: CompilationCache | None = None
    topology_constraint: ServiceTopology | None = None
    experimental: BetaExperimental | None = None
    runtime_version_override: str | None = None
    provider_override: Opaque | None = None
    global_dynamo_namespace: bool | None = None


class BetaTopology(GraphModel):
    """How closely the graph is packed."""

    cluster_topology_name: NonEmpty
    pack_domain: PackDomain | None = None


class BetaSpec(GraphModel):
    """``spec``."""

    hints: ClassVar[Mapping[str, str]] = {
        "services": "v1beta1 calls it 'components', a list",
        "envs": "v1beta1 calls it 'env'",
        "pvcs": "in v1beta1 make the claims yourself",
    }

    components: Annotated[list[BetaComponent], Field(min_length=1, max_length=25)]
    env: list[EnvVar] = []
    backend_framework: Literal["sglang", "vllm", "trtllm"] | None = None
    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}
    restart: Restart | None = None
    topology_constraint: BetaTopology | None = None
    experimental: Opaque | None = None
    priority_class_name: str | None = None
    provider_override: Opaque | None = None


class BetaDeployment(GraphModel):
    """A DynamoGraphDeployment, v1beta1."""

    api_version: Literal["nvidia.com/v1beta1"]
    kind: Literal["DynamoGraphDeployment"] = KIND
    metadata: ObjectMeta
    spec: BetaSpec
    status: Opaque | None = None


def check_references(graph: BetaDeployment) -> list[Violation]:
    """Components that share a name, which a map of services cannot hold, and sidecars that are not there."""
    found = []
    names: set[str] = set()
    for index, component in enumerate(graph.spec.components):
        path = f"spec.components[{index}]"
        if component.name in names:
            found.append(Violation(f"{path}.name", component.name, "comes twice", "rename one of the two"))
        names.add(component.name)
        template = component.pod_template
        containers = [c.name for c in template.spec.containers] if template and template.spec else []
        sidecar = component.frontend_sidecar
        if sidecar is not None and sidecar not in containers:
            rule = "names no container of podTemplate.spec"
            found.append(Violation(f"{path}.frontendSidecar", sidecar, rule, "add the container, or remove the field"))
    return found


def to_v1alpha1(graph: BetaDeployment) -> dict[str, Any]:
    """The v1alpha1 document that describes the same deployment.

    A component's environment becomes the service's ``envs``, since in both it beats the graph's; the environment of a
    v1alpha1 main container would not.
    """
    document = graph.to_document()
    given = document["spec"]
    spec = {key: given[key] for key in _SAME_OF_GRAPH if key in given}
    if "env" in given:
        spec["envs"] = given["env"]
    if "experimental" in given:
        spec["experimental"] = given["experimental"]
    if graph.spec.topology_constraint is not None:
        topology = dict(given["topologyConstraint"])
        topology["topologyProfile"] = topology.pop("clusterTopologyName")
        spec["topologyConstraint"] = topology
    spec["services"] = {
        component.name: _service(component, raw)
        for component, raw in zip(graph.spec.components, given["components"], strict=True)
    }
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": document["metadata"], "spec": spec}


def _service(component: BetaComponent, raw: dict[str, Any]) -> dict[str, Any]:
    service = {key: raw[key] for key in (*_SAME, "globalDynamoNamespace") if key in raw}
    if component.type is not None:
        service["componentType"] = component.type
    if component.scaling_adapter is not None:
        service["scalingAdapter"] = {"enabled": True}
    if component.shared_memory_size is not None:
        size = str(component.shared_memory_size)
        service["sharedMemory"] = {"disabled": True} if size == "0" else {"size": size}
    cache = component.compilation_cache
    if cache is not None:
        mount: dict[str, Any] = {"name": cache.pvc_name, "useAsCompilationCache": True}
        if cache.mount_path:
            mount["mountPoint"] = cache.mount_path
        service["volumeMounts"] = [mount]
    if component.experimental is not None:
        service.update(_experimental(raw["experimental"]))
    template = raw.get("podTemplate", {})
    if "metadata" in template:
        service["extraPodMetadata"] = template["metadata"]
    if component.pod_template is not None and component.pod_template.spec is not None:
        service.update(_pod(component, component.pod_template.spec))
    return service


def _pod(component: BetaComponent, pod: PodSpec) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    extra = pod.to_document()
    others = []
    for container, raw in zip(pod.containers, extra.pop("containers", []), strict=True):
        if container.name == "main":
            converted["envs"] = raw.pop("env", [])
            extra["mainContainer"] = raw
        elif container.name == component.frontend_sidecar:
            converted["frontendSidecar"] = _sidecar(container, raw)
        else:
            others.append(raw)
    if others:
        extra["containers"] = others
    converted["extraPodSpec"] = extra
    return converted


def _sidecar(container: Container, raw: dict[str, Any]) -> dict[str, Any]:
    sidecar: dict[str, Any] = {key: raw[key] for key in ("image", "args") if key in raw}
    if "env" in raw:
        sidecar["envs"] = raw["env"]
    for source in container.env_from:
        if source.secret_ref is not None:
            sidecar["envFromSecret"] = source.secret_ref.name
    return sidecar


def _experimental(raw: dict[str, Any]) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    for block in ("gpuMemoryService", "failover"):
        if block in raw:
            converted[block] = {**raw[block], "enabled": True}
            mode = raw[block].get("mode")
            if mode:
                converted[block]["mode"] = mode[0].lower() + mode[1:]
    if "checkpoint" in raw:
        converted["checkpoint"] = raw["checkpoint"]
    return converted
