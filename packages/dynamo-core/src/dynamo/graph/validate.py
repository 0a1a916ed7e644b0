"""Rules that look at more than one field, for ``dynamo serve`` and for the operator's admission webhook alike.

Rules about one field are in the models, rules that need a cluster in the operator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dynamo.config.settings import nearest
from dynamo.graph.deployment import DynamoGraphDeployment, GraphSpec, KvTransferPolicy, Restart
from dynamo.graph.pod import Container, EnvVar
from dynamo.graph.service import COMPONENT_TYPES, WORKER_TYPES, ResourceItem, ServiceSpec
from dynamo.graph.violation import Violation

__all__ = ["MAX_SERVICES", "validate_graph", "validate_update"]

MAX_SERVICES = 25
#: A Service is named GRAPH-SERVICE, and a DNS label holds 63 characters.
_MAX_NAME = 63
#: Grove refuses longer names of a set and its cliques together.
_MAX_GROVE_NAME = 45
_GRAPH_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?\Z")
_SERVICE_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?\Z")
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?\Z")
_WHOLE = re.compile(r"\d+\Z")
_SIDECAR = "sidecar-frontend"

Violations = Iterator[Violation]


def validate_graph(graph: DynamoGraphDeployment) -> list[Violation]:
    """Everything in `graph` that breaks a rule, errors and warnings, in the order of the document."""
    return [*_names(graph), *_graph_rules(graph.spec), *_all_services(graph.spec)]


def validate_update(old: DynamoGraphDeployment, new: DynamoGraphDeployment) -> list[Violation]:
    """What may not change in a graph that exists."""
    found = []
    if old.spec.backend_framework and new.spec.backend_framework != old.spec.backend_framework:
        was = old.spec.backend_framework
        found.append(
            Violation(
                "spec.backendFramework",
                new.spec.backend_framework,
                f"cannot change, it was {was!r}",
                "make another graph",
            )
        )
    for name in sorted(old.spec.services.keys() ^ new.spec.services.keys()):
        rule = "cannot be added" if name in new.spec.services else "cannot be removed"
        found.append(
            Violation(
                f"spec.services.{name}", None, f"{rule} while the graph exists", "delete the graph and make it again"
            )
        )
    for name, service in new.spec.services.items():
        before = old.spec.services.get(name)
        if before is not None and (before.multinode is None) != (service.multinode is None):
            rule = "a service cannot change between one node and several"
            found.append(Violation(f"spec.services.{name}.multinode", None, rule, "delete the graph and make it again"))
    return found


def _names(graph: DynamoGraphDeployment) -> Violations:
    name = graph.name
    if not _GRAPH_NAME.match(name):
        yield Violation(
            "metadata.name", name, "is not a name that Kubernetes takes", "use lower-case letters, digits and '-'"
        )
    seen: dict[str, str] = {}
    for service_name, service in graph.spec.services.items():
        path = f"spec.services.{service_name}"
        folded = service_name.lower()
        if not _SERVICE_NAME.match(service_name):
            yield Violation(
                path, service_name, "is not a name that Kubernetes takes", "use letters, digits and '-' between them"
            )
        if folded in seen:
            rule = f"has the same lower-case name as {seen[folded]!r}"
            yield Violation(path, service_name, rule, "rename one of the two")
        seen.setdefault(folded, service_name)
        combined = f"{name}-{folded}"
        if len(combined) > _MAX_NAME:
            rule = f"makes the name {combined!r} of {len(combined)} characters; {_MAX_NAME} is the limit"
            yield Violation(path, service_name, rule, "shorten the graph's or the service's name")
        grove = len(name + folded) + (len(f"{folded}-ldr") if service.multinode else 0)
        if len(combined) <= _MAX_NAME and grove > _MAX_GROVE_NAME:
            rule = f"needs {grove} characters of names; with Grove {_MAX_GROVE_NAME} is the limit"
            yield Violation(path, service_name, rule, "shorten the graph's or the service's name", "warning")


def _graph_rules(spec: GraphSpec) -> Violations:
    count = len(spec.services)
    if count == 0:
        yield Violation("spec.services", None, "must hold at least one service", "add a frontend and a worker")
    if count > MAX_SERVICES:
        yield Violation("spec.services", count, f"must hold at most {MAX_SERVICES} services", "split the graph")
    endpoint_pickers = [name for name, service in spec.services.items() if service.component_type == "epp"]
    for name in endpoint_pickers[1:]:
        rule = "only one service of a graph may be an epp"
        yield Violation(f"spec.services.{name}.componentType", "epp", rule, f"keep {endpoint_pickers[0]!r}")
    yield from _env_rules(spec.envs, "spec.envs")
    for index, claim in enumerate(spec.pvcs):
        needed = {"storageClass": claim.storage_class, "size": claim.size, "volumeAccessMode": claim.volume_access_mode}
        for field, value in needed.items():
            if claim.create and not value:
                yield Violation(
                    f"spec.pvcs[{index}].{field}",
                    None,
                    "is required with create: true",
                    "or make the claim yourself and set create: false",
                )
    if spec.restart is not None:
        yield from _restart_rules(spec.restart, set(spec.services))
    topology = spec.topology_constraint
    packed = any(service.topology_constraint for service in spec.services.values())
    if topology is not None and topology.pack_domain is None and not packed:
        rule = "is required where no service has a topologyConstraint of its own"
        yield Violation("spec.topologyConstraint.packDomain", None, rule)
    if spec.experimental is not None and spec.experimental.kv_transfer_policy is not None:
        yield from _kv_transfer_rules(spec.experimental.kv_transfer_policy)


def _restart_rules(restart: Restart, services: set[str]) -> Violations:
    if restart.strategy is None or not restart.strategy.order:
        return
    order = restart.strategy.order
    path = "spec.restart.strategy.order"
    if restart.strategy.type == "Parallel":
        yield Violation(path, order, "has no meaning with type: Parallel", "remove it, or use type: Sequential")
    for name in dict.fromkeys(order):
        if name not in services:
            yield Violation(path, name, "names no service of the graph", f"services: {', '.join(sorted(services))}")
        if order.count(name) > 1:
            yield Violation(path, name, "names a service twice")
    missing = sorted(services - set(order))
    if missing:
        yield Violation(path, order, "must name every service", f"add {', '.join(missing)}")


def _kv_transfer_rules(policy: KvTransferPolicy) -> Violations:
    path = "spec.experimental.kvTransferPolicy"
    if (policy.label_key is None) == (policy.cluster_topology_name is None):
        yield Violation(path, None, "needs exactly one of labelKey and clusterTopologyName")
    if (policy.enforcement == "preferred") != (policy.preferred_weight is not None):
        rule = "is required with enforcement: preferred, and only there"
        yield Violation(f"{path}.preferredWeight", policy.preferred_weight, rule)


def _all_services(spec: GraphSpec) -> Violations:
    for name, service in spec.services.items():
        path = f"spec.services.{name}"
        yield from _service_rules(service, path)
        yield from _pod_rules(service, path)
        yield from _gpu_sharing_rules(service, path)


def _service_rules(service: ServiceSpec, path: str) -> Violations:
    replicas, kind = service.desired_replicas, service.component_type
    meant = nearest(kind, COMPONENT_TYPES) if kind is not None and kind not in COMPONENT_TYPES else None
    if meant is not None:
        rule = "is a type that nothing here knows: it has no default command, ports and probes"
        yield Violation(f"{path}.componentType", kind, rule, f"did you mean {meant!r}?", "warning")
    if service.min_available is not None and 0 < replicas < service.min_available:
        rule = f"must be at most replicas ({replicas})"
        yield Violation(f"{path}.minAvailable", service.min_available, rule)
    if service.ingress is not None and service.ingress.enabled and not service.ingress.host:
        yield Violation(f"{path}.ingress.host", None, "is required where the ingress is enabled")
    for index, mount in enumerate(service.volume_mounts):
        if not mount.mount_point and not mount.use_as_compilation_cache:
            yield Violation(
                f"{path}.volumeMounts[{index}].mountPoint",
                None,
                "is required",
                "unless useAsCompilationCache is true",
            )
    memory = service.shared_memory
    if memory is not None and not memory.disabled and not memory.size:
        yield Violation(f"{path}.sharedMemory.size", None, "is required", "or set disabled: true")
    if service.scaling_adapter is not None and not service.scaling_adapter.enabled:
        rule = "is off without enabled: true"
        yield Violation(f"{path}.scalingAdapter", None, rule, "write it, or remove the block", "warning")
    if service.component_type == "epp":
        config = service.epp_config
        if config is None or (config.config is None) == (config.config_map_ref is None):
            yield Violation(f"{path}.eppConfig", None, "needs exactly one of config and configMapRef")
        if replicas != 1 or service.multinode is not None:
            yield Violation(f"{path}.replicas", replicas, "an epp runs once, on one node")
    elif service.epp_config is not None:
        yield Violation(f"{path}.eppConfig", None, "belongs to a service with componentType: epp")
    checkpoint = service.checkpoint
    if checkpoint is not None and checkpoint.checkpoint_ref and checkpoint.job is not None:
        yield Violation(f"{path}.checkpoint.job", None, "cannot be combined with checkpointRef", "remove one of them")
    if service.resources is not None:
        yield from _quantity_rules(service.resources.limits, f"{path}.resources.limits")
        yield from _quantity_rules(service.resources.requests, f"{path}.resources.requests")


def _quantity_rules(item: ResourceItem | None, path: str) -> Violations:
    if item is None:
        return
    named = {"cpu": item.cpu, "memory": item.memory, **{f"custom.{key}": value for key, value in item.custom.items()}}
    for key, value in named.items():
        if value is not None and not _QUANTITY.match(value):
            yield Violation(f"{path}.{key}", value, "is not a quantity", "write it as in 500m, 2 or 16Gi")
    if item.gpu is not None and not _WHOLE.match(item.gpu):
        yield Violation(f"{path}.gpu", item.gpu, "is not a whole number of GPUs", 'write it as in "1"')


def _pod_rules(service: ServiceSpec, path: str) -> Violations:
    yield from _env_rules(service.envs, f"{path}.envs")
    pod = service.extra_pod_spec
    if pod is None:
        return
    yield from _env_rules(pod.envs, f"{path}.extraPodSpec.envs")
    if pod.main_container is not None:
        yield from _container_rules(pod.main_container, f"{path}.extraPodSpec.mainContainer")
    for index, container in enumerate(pod.containers):
        here = f"{path}.extraPodSpec.containers[{index}]"
        yield from _container_rules(container, here)
        if not container.name:
            yield Violation(f"{here}.name", None, "is required")
        elif container.name == "main" or (container.name == _SIDECAR and service.frontend_sidecar is not None):
            yield Violation(f"{here}.name", container.name, "is taken by a container that the operator makes")


def _container_rules(container: Container, path: str) -> Violations:
    yield from _env_rules(container.env, f"{path}.env")
    resources = container.resources
    if resources is not None:
        for kind, quantities in (("limits", resources.limits), ("requests", resources.requests)):
            for key, value in quantities.items():
                if not _QUANTITY.match(str(value)):
                    yield Violation(f"{path}.resources.{kind}.{key}", value, "is not a quantity", "as in 500m or 16Gi")


def _env_rules(variables: list[EnvVar], path: str) -> Violations:
    for index, variable in enumerate(variables):
        if variable.value and variable.value_from is not None:
            yield Violation(f"{path}[{index}]", variable.name, "has both value and valueFrom", "remove one of them")
        if "=" in variable.name or "\0" in variable.name:
            yield Violation(f"{path}[{index}].name", variable.name, "is not a variable name", "it may not hold '='")


def _gpu_sharing_rules(service: ServiceSpec, path: str) -> Violations:
    memory = service.gpu_memory_service
    shared = memory is not None and memory.enabled
    if shared:
        if service.component_type not in WORKER_TYPES:
            rule = "is for workers only"
            yield Violation(f"{path}.gpuMemoryService", service.component_type, rule)
        if _gpus(service) < 1:
            yield Violation(f"{path}.gpuMemoryService", None, "needs a GPU limit", 'add resources.limits.gpu: "1"')
    failover = service.failover
    if failover is None or not failover.enabled:
        return
    if not shared or memory is None or memory.mode != failover.mode:
        hint = f"add gpuMemoryService with enabled: true and mode: {failover.mode}"
        yield Violation(f"{path}.failover", None, "needs the GPU memory service with the same mode", hint)
    if failover.mode == "intraPod" and failover.num_shadows != 1:
        rule = "must be 1 with mode: intraPod"
        yield Violation(f"{path}.failover.numShadows", failover.num_shadows, rule)


def _gpus(service: ServiceSpec) -> int:
    limits = service.resources.limits if service.resources else None
    if limits is not None and limits.gpu is not None and _WHOLE.match(limits.gpu):
        return int(limits.gpu)
    pod = service.extra_pod_spec
    main = pod.main_container if pod else None
    quantities = main.resources.limits if main and main.resources else {}
    return sum(int(value) for key, value in quantities.items() if key.endswith("/gpu") and _WHOLE.match(str(value)))
