"""The parts of Kubernetes pods that a graph may hold. What nobody here acts on stays an opaque map."""

# ruff: noqa: RUF012  # pydantic copies mutable defaults
from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dynamo.graph.metadata import GraphModel, IntOrString, Misplaced, NonEmpty, Opaque

__all__ = [
    "Container",
    "ContainerPort",
    "ContainerResources",
    "EnvFromSource",
    "EnvVar",
    "EnvVarSource",
    "ExtraPodSpec",
    "FieldRef",
    "HttpGet",
    "KeyRef",
    "NamedRef",
    "PodSpec",
    "Probe",
    "VolumeMount",
]


class KeyRef(GraphModel):
    """One key of a Secret or ConfigMap."""

    name: str = ""
    key: NonEmpty
    optional: bool = False


class FieldRef(GraphModel):
    """A field of the pod itself."""

    field_path: NonEmpty
    api_version: str | None = None


class EnvVarSource(GraphModel):
    """Where the value of an environment variable comes from."""

    secret_key_ref: KeyRef | None = None
    config_map_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None
    resource_field_ref: Opaque | None = None
    file_key_ref: Opaque | None = None


class EnvVar(GraphModel):
    """One environment variable."""

    name: NonEmpty
    value: str | None = None
    value_from: EnvVarSource | None = None


class NamedRef(GraphModel):
    """A Secret or ConfigMap of the same namespace."""

    name: str = ""
    optional: bool = False


class EnvFromSource(GraphModel):
    """All keys of a Secret or ConfigMap as variables."""

    prefix: str = ""
    secret_ref: NamedRef | None = None
    config_map_ref: NamedRef | None = None


class ContainerPort(GraphModel):
    """A port that a container listens on."""

    container_port: Annotated[int, Field(gt=0, le=65535)]
    name: str | None = None
    protocol: str | None = None
    host_port: int | None = None
    host_ip: str | None = Field(default=None, alias="hostIP")


class HttpGet(GraphModel):
    """An HTTP probe."""

    port: IntOrString
    path: str | None = None
    host: str | None = None
    scheme: str | None = None
    http_headers: list[Opaque] = []


class Probe(GraphModel):
    """How Kubernetes asks whether a container is well."""

    http_get: HttpGet | None = None
    exec: Opaque | None = None
    tcp_socket: Opaque | None = None
    grpc: Opaque | None = None
    initial_delay_seconds: int | None = None
    period_seconds: int | None = None
    timeout_seconds: int | None = None
    success_threshold: int | None = None
    failure_threshold: int | None = None
    termination_grace_period_seconds: int | None = None


class VolumeMount(GraphModel):
    """Where a container sees a volume of its pod."""

    name: NonEmpty
    mount_path: NonEmpty
    sub_path: str | None = None
    sub_path_expr: str | None = None
    read_only: bool | None = None
    recursive_read_only: str | None = None
    mount_propagation: str | None = None


class ContainerResources(GraphModel):
    """Quantities by resource name, as Kubernetes spells them (``nvidia.com/gpu``)."""

    limits: dict[str, IntOrString] = {}
    requests: dict[str, IntOrString] = {}
    claims: list[Opaque] = []


class Container(GraphModel):
    """One container."""

    name: str | None = None
    image: str | None = None
    command: list[str] = []
    args: list[str] = []
    working_dir: str | None = None
    ports: list[ContainerPort] = []
    env: list[EnvVar] = []
    env_from: list[EnvFromSource] = []
    resources: ContainerResources | None = None
    volume_mounts: list[VolumeMount] = []
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    image_pull_policy: str | None = None
    lifecycle: Opaque | None = None
    resize_policy: list[Opaque] = []
    restart_policy: str | None = None
    restart_policy_rules: list[Opaque] = []
    security_context: Opaque | None = None
    stdin: bool | None = None
    stdin_once: bool | None = None
    termination_message_path: str | None = None
    termination_message_policy: str | None = None
    tty: bool | None = None
    volume_devices: list[Opaque] = []


class PodSpec(GraphModel):
    """A pod."""

    containers: list[Container] = []
    init_containers: list[Container] = []
    volumes: list[Opaque] = []
    termination_grace_period_seconds: Annotated[int, Field(ge=0)] | None = None
    active_deadline_seconds: int | None = None
    affinity: Opaque | None = None
    automount_service_account_token: bool | None = None
    dns_config: Opaque | None = None
    dns_policy: str | None = None
    enable_service_links: bool | None = None
    ephemeral_containers: list[Opaque] = []
    host_aliases: list[Opaque] = []
    host_ipc: bool | None = Field(default=None, alias="hostIPC")
    host_network: bool | None = None
    host_pid: bool | None = Field(default=None, alias="hostPID")
    host_users: bool | None = None
    hostname: str | None = None
    hostname_override: str | None = None
    image_pull_secrets: list[Opaque] = []
    node_name: str | None = None
    node_selector: dict[str, str] = {}
    os: Opaque | None = None
    overhead: Opaque | None = None
    preemption_policy: str | None = None
    priority: int | None = None
    priority_class_name: str | None = None
    readiness_gates: list[Opaque] = []
    resource_claims: list[Opaque] = []
    resources: Opaque | None = None
    restart_policy: str | None = None
    runtime_class_name: str | None = None
    scheduler_name: str | None = None
    scheduling_gates: list[Opaque] = []
    security_context: Opaque | None = None
    service_account: str | None = None
    service_account_name: str | None = None
    set_hostname_as_fqdn: bool | None = Field(default=None, alias="setHostnameAsFQDN")
    share_process_namespace: bool | None = None
    subdomain: str | None = None
    tolerations: list[Opaque] = []
    topology_spread_constraints: list[Opaque] = []


class ExtraPodSpec(PodSpec):
    """A pod with the container that runs the component.

    ``envs`` belongs to the service; it is written here often enough, our own introduction included, to be understood.
    """

    main_container: Container | None = None
    envs: Annotated[list[EnvVar], Misplaced("move it up, envs belongs to the service: a cluster drops it here")] = []
