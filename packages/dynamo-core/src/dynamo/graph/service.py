"""One service of a graph: a component, how many, and the pod that it runs in (v1alpha1, releases 0.5 to 1.x)."""

# ruff: noqa: RUF012  # pydantic copies mutable defaults
from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dynamo.graph.metadata import GraphModel, NonEmpty, Obsolete, Opaque
from dynamo.graph.pod import EnvVar, ExtraPodSpec, Probe

__all__ = [
    "COMPONENT_TYPES",
    "WORKER_TYPES",
    "Checkpoint",
    "EppConfig",
    "ExtraPodMetadata",
    "Failover",
    "FrontendSidecar",
    "GpuMemoryService",
    "Ingress",
    "ModelRef",
    "Multinode",
    "PackDomain",
    "ResourceItem",
    "Resources",
    "ScalingAdapter",
    "ServiceSpec",
    "ServiceTopology",
    "ServiceVolumeMount",
    "SharedMemory",
]

WORKER_TYPES = frozenset({"worker", "prefill", "decode"})
#: Of `componentType`, which is free text: any other has the defaults of none of them. `main` and `default` say just
#: that; the last ones are names that graphs in use give to parts of their own.
COMPONENT_TYPES = (
    *sorted(WORKER_TYPES),
    "frontend",
    "planner",
    "epp",
    "main",
    "default",
    "encode",
    "encoder",
    "router",
)

PackDomain = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
_GmsMode = Literal["intraPod", "interPod"]


class ResourceItem(GraphModel):
    """Quantities, all strings."""

    cpu: str | None = None
    memory: str | None = None
    gpu: str | None = None
    gpu_type: str | None = None
    """Resource name of the GPUs; ``nvidia.com/gpu`` if absent."""
    custom: dict[str, str] = {}


class Resources(GraphModel):
    """What one pod of the service gets."""

    requests: ResourceItem | None = None
    limits: ResourceItem | None = None
    claims: list[Opaque] = []


class ServiceVolumeMount(GraphModel):
    """A PersistentVolumeClaim in the main container."""

    name: NonEmpty
    mount_point: str | None = None
    use_as_compilation_cache: bool = False


class SharedMemory(GraphModel):
    """``/dev/shm``; 8Gi if the block is absent."""

    disabled: bool = False
    size: str | None = None


class ExtraPodMetadata(GraphModel):
    """Metadata that is put on pods last."""

    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}


class Multinode(GraphModel):
    """One replica on several nodes."""

    node_count: Annotated[int, Field(ge=2)] = 2
    leader: Opaque | None = None
    worker: Opaque | None = None


class IngressTls(GraphModel):
    """TLS of an ingress."""

    secret_name: str | None = None


class Ingress(GraphModel):
    """Access from outside of the cluster."""

    enabled: bool = False
    host: str | None = None
    use_virtual_service: bool = False
    virtual_service_gateway: str | None = None
    host_prefix: str | None = None
    host_suffix: str | None = None
    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}
    tls: IngressTls | None = None
    ingress_controller_class_name: str | None = None


class ModelRef(GraphModel):
    """The model that DynamoModel objects refer to."""

    name: NonEmpty
    revision: str | None = None


class ScalingAdapter(GraphModel):
    """Lets an autoscaler or planner own the number of replicas; an empty block is off."""

    enabled: bool = False


class EppConfig(GraphModel):
    """Configuration of the inference gateway's endpoint picker."""

    config_map_ref: Opaque | None = None
    config: Opaque | None = None


class FrontendSidecar(GraphModel):
    """A frontend beside every pod of a worker, for inference gateways."""

    image: NonEmpty
    args: list[str] = []
    env_from_secret: str | None = None
    envs: list[EnvVar] = []


class CheckpointJob(GraphModel):
    """The job that makes a checkpoint."""

    gms_client_containers: list[str] = []
    pod_template: Opaque | None = None


class Checkpoint(GraphModel):
    """Start pods from a snapshot of a running one."""

    enabled: bool = False
    mode: Literal["Auto", "Manual"] | None = None
    startup_policy: Literal["Immediate", "WaitForCheckpoint"] | None = None
    deletion_policy: Literal["Delete", "Retain"] | None = None
    checkpoint_ref: str | None = None
    identity: Opaque | None = None
    target_container_name: str | None = None
    job: CheckpointJob | None = None


class ServiceTopology(GraphModel):
    """How closely the pods of a service are packed."""

    pack_domain: PackDomain


class GpuMemoryService(GraphModel):
    """Weights in GPU memory shared by several engines."""

    enabled: bool = False
    mode: _GmsMode = "intraPod"
    device_class_name: str | None = None
    extra_client_containers: list[Opaque] = []
    extra_client_pods: list[Opaque] = []


class Failover(GraphModel):
    """Standby engines that share the GPU memory service."""

    enabled: bool = False
    mode: _GmsMode = "intraPod"
    num_shadows: Annotated[int, Field(ge=1)] = 1


class ServiceSpec(GraphModel):
    """``spec.services.NAME``; the same fields make up a DynamoComponentDeployment."""

    component_type: str | None = None
    """frontend, worker, prefill, decode, planner, epp; anything else gets no defaults."""
    sub_component_type: str | None = None
    """prefill or decode, of a worker."""
    service_name: str | None = None
    dynamo_namespace: Annotated[
        str | None, Obsolete("remove it: processes of one graph share a namespace made of its name")
    ] = None
    global_dynamo_namespace: bool = False
    replicas: Annotated[int, Field(ge=0)] | None = None
    """1 if absent."""
    min_available: Annotated[int, Field(ge=1)] | None = None
    resources: Resources | None = None
    envs: list[EnvVar] = []
    env_from_secret: str | None = None
    volume_mounts: list[ServiceVolumeMount] = []
    shared_memory: SharedMemory | None = None
    extra_pod_spec: ExtraPodSpec | None = None
    extra_pod_metadata: ExtraPodMetadata | None = None
    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    multinode: Multinode | None = None
    ingress: Ingress | None = None
    model_ref: ModelRef | None = None
    scaling_adapter: ScalingAdapter | None = None
    autoscaling: Annotated[Opaque | None, Obsolete("use scalingAdapter with enabled: true, or a planner")] = None
    epp_config: EppConfig | None = None
    frontend_sidecar: FrontendSidecar | None = None
    checkpoint: Checkpoint | None = None
    topology_constraint: ServiceTopology | None = None
    gpu_memory_service: GpuMemoryService | None = None
    failover: Failover | None = None
    runtime_version_override: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")] | None = None
    provider_override: Opaque | None = None
    pvc: Annotated[Opaque | None, Obsolete("list the claim in spec.pvcs and mount it with volumeMounts")] = None

    @property
    def desired_replicas(self) -> int:
        """Pods, or groups of pods of a multinode service."""
        return 1 if self.replicas is None else self.replicas

    @property
    def role(self) -> str | None:
        """The component type with prefill and decode workers told apart; None if nothing was said."""
        if self.component_type in (None, "worker") and self.sub_component_type in WORKER_TYPES:
            return self.sub_component_type
        return self.component_type
