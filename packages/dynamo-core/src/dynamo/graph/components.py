"""Turns a graph into the components that a scheduler runs: what the pods' main containers would run.

`dynamo serve` calls :func:`resolve_components`. What exists only in containers becomes a note instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from dynamo.errors import ConfigError
from dynamo.graph.command import container_command, expand, main_container
from dynamo.graph.deployment import DynamoGraphDeployment
from dynamo.graph.environment import service_environment
from dynamo.graph.pod import EnvVar, ExtraPodSpec
from dynamo.graph.service import ServiceSpec
from dynamo.protocols.scheduling import ComponentSpec

__all__ = ["Note", "Resolution", "resolve_components"]

_NOTHING: Mapping[str, str] = MappingProxyType({})
#: What a component's module says about its type where the graph does not.
_KIND_OF_MODULE = {"dynamo.frontend": "frontend", "dynamo.planner": "planner", "planner_sla": "planner"}
_TYPES_WITHOUT_MEANING = frozenset({None, "", "main", "default"})


class Note(NamedTuple):
    """Something in a graph that a process does not have; `component` is empty if it concerns the graph."""

    component: str
    subject: str
    message: str


class Resolution(NamedTuple):
    """The components in the order of the graph, and what was left out."""

    components: list[ComponentSpec]
    notes: list[Note]


def resolve_components(graph: DynamoGraphDeployment, *, base_env: Mapping[str, str] = _NOTHING) -> Resolution:
    """Resolve every service of `graph`.

    `base_env` is what every component gets and the graph may override: addresses of the platform, say. ``argv`` is
    as in the pod (``python3 ...``), with ``$(NAME)`` replaced; ``env`` holds no value that only a cluster knows, so
    a variable taken from a Secret is inherited from whoever starts the process.

    Raises:
        ConfigError: nothing says what a service runs.
    """
    components: list[ComponentSpec] = []
    notes: list[Note] = []
    if graph.spec.pvcs:
        names = ", ".join(claim.name for claim in graph.spec.pvcs)
        notes.append(Note("", "pvcs", f"claims exist in a cluster only: {names}"))
    for name, service in graph.spec.services.items():
        if service.component_type == "epp":
            notes.append(Note(name, "epp", "is part of an inference gateway, which exists in a cluster only; not run"))
            continue
        environment = service_environment(graph, service, base_env)
        components.append(_component(graph, name, service, environment.values))
        notes.extend(
            Note(name, f"env {variable}", f"is {place}; here it is inherited from the environment, if set there")
            for variable, place in environment.elsewhere.items()
        )
        notes.extend(Note(name, subject, message) for subject, message in _containers_only(service))
        if service.frontend_sidecar is not None:
            components.append(_sidecar(graph, name, service, base_env))
            notes.append(Note(name, "frontendSidecar", "runs once, not beside every replica"))
    return Resolution(components, notes)


def _component(
    graph: DynamoGraphDeployment, name: str, service: ServiceSpec, environment: dict[str, str]
) -> ComponentSpec:
    command, args = container_command(service, graph.spec.backend_framework)
    if not command:
        raise ConfigError(
            f"graph {graph.name}: service {name} does not say what to run",
            param=f"spec.services.{name}.extraPodSpec.mainContainer.command",
            hint="give it a command, as in [python3, -m, dynamo.vllm], or set spec.backendFramework",
        )
    pod = service.extra_pod_spec
    grace = pod.termination_grace_period_seconds if pod else None
    spec = ComponentSpec(
        name=name,
        argv=tuple(expand(part, environment) for part in (*command, *args)),
        kind=_kind(service, (*command, *args)),
        replicas=service.desired_replicas,
        env=environment,
        resources=_resources(service),
        working_directory=main_container(service).working_dir,
    )
    return spec if grace is None else msgspec.structs.replace(spec, stop_grace_seconds=float(grace))


def _sidecar(
    graph: DynamoGraphDeployment, name: str, service: ServiceSpec, base_env: Mapping[str, str]
) -> ComponentSpec:
    """The frontend beside a worker, as a component of its own."""
    sidecar = service.frontend_sidecar
    assert sidecar is not None
    fields = {"componentType": "frontend", "globalDynamoNamespace": service.global_dynamo_namespace}
    frontend = ServiceSpec.model_validate(
        {**fields, "extraPodSpec": {"mainContainer": {"args": sidecar.args}}, "envs": _documents(sidecar.envs)}
    )
    environment = service_environment(graph, frontend, base_env)
    return _component(graph, f"{name}-sidecar-frontend", frontend, environment.values)


def _documents(variables: Sequence[EnvVar]) -> list[dict[str, Any]]:
    return [variable.to_document() for variable in variables]


def _kind(service: ServiceSpec, argv: Sequence[str]) -> str:
    role = service.role
    if role not in _TYPES_WITHOUT_MEANING:
        assert role is not None
        return role
    words = " ".join(argv).split()
    return next((_KIND_OF_MODULE[word] for word in words if word in _KIND_OF_MODULE), "worker")


def _resources(service: ServiceSpec) -> dict[str, str]:
    """Quantities by name, a limit before a request, the service's before its container's; GPUs of any kind as gpu."""
    found: dict[str, str] = {}
    container = main_container(service).resources
    if container is not None:
        for quantities in (container.requests, container.limits):
            found |= {_resource_name(key): str(value) for key, value in quantities.items()}
    if service.resources is not None:
        for item in (service.resources.requests, service.resources.limits):
            if item is not None:
                plain = {"cpu": item.cpu, "memory": item.memory, "gpu": item.gpu}
                found |= {key: value for key, value in plain.items() if value is not None}
                found |= {_resource_name(key): value for key, value in item.custom.items()}
    return found


def _resource_name(name: str) -> str:
    return "gpu" if name.endswith(".com/gpu") else name


def _containers_only(service: ServiceSpec) -> Iterator[tuple[str, str]]:
    """Subject and message of everything about a service that processes do not have."""
    main = main_container(service)
    pod = service.extra_pod_spec or ExtraPodSpec()
    if main.image:
        yield "image", f"{main.image} is not used: the component runs in this Python environment"
    if main.working_dir:
        yield "workingDir", f"{main.working_dir} is a directory of the image; used only if it exists here"
    secrets = [service.env_from_secret, *(s.secret_ref.name for s in main.env_from if s.secret_ref)]
    maps = [s.config_map_ref.name for s in main.env_from if s.config_map_ref]
    for kind, names in (("Secret", secrets), ("ConfigMap", maps)):
        for name in names:
            if name:
                yield "envFrom", f"{kind} {name} exists in a cluster only; set its variables in your environment"
    mounts = [*(m.name for m in service.volume_mounts), *(m.name for m in main.volume_mounts)]
    if mounts:
        yield "volumes", f"not mounted: {', '.join(mounts)}; paths below their mount points are this machine's own"
    if service.multinode is not None:
        nodes = service.multinode.node_count
        yield "multinode", f"{nodes} nodes per replica exist in containers only; one process runs instead"
    probes = (service.liveness_probe, service.readiness_probe)
    if any(probes) or main.liveness_probe or main.readiness_probe or main.startup_probe:
        yield "probes", "processes are asked on their system port instead"
    others = [container.name or "?" for container in (*pod.containers, *pod.init_containers)]
    if others:
        yield "containers", f"only the main container runs: not {', '.join(others)}"
    blocks = {
        "sharedMemory": service.shared_memory,
        "ingress": service.ingress,
        "scalingAdapter": service.scaling_adapter,
        "checkpoint": service.checkpoint,
        "gpuMemoryService": service.gpu_memory_service,
        "failover": service.failover,
        "topologyConstraint": service.topology_constraint,
        "resourceClaims": pod.resource_claims or (service.resources.claims if service.resources else None),
    }
    for block, value in blocks.items():
        if value:
            yield block, "exists in a cluster only"
