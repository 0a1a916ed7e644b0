"""The graph: a DynamoGraphDeployment, v1alpha1, with the fields of all releases from 0.5 to 1.x."""

# ruff: noqa: RUF012  # pydantic copies mutable defaults
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from dynamo.graph.metadata import GraphModel, IntOrString, NonEmpty, ObjectMeta, Obsolete, Opaque
from dynamo.graph.pod import EnvVar
from dynamo.graph.service import PackDomain, ServiceSpec

__all__ = [
    "API_VERSION",
    "KIND",
    "DynamoGraphDeployment",
    "Experimental",
    "GraphSpec",
    "GraphTopology",
    "KvTransferPolicy",
    "PersistentVolume",
    "Restart",
    "RestartStrategy",
]

API_VERSION: Final = "nvidia.com/v1alpha1"
KIND: Final = "DynamoGraphDeployment"


class PersistentVolume(GraphModel):
    """A PersistentVolumeClaim that services may mount: created, or only looked for."""

    name: NonEmpty
    create: bool = False
    storage_class: str | None = None
    size: IntOrString | None = None
    volume_access_mode: str | None = None


class RestartStrategy(GraphModel):
    """In which order services restart."""

    type: Literal["Sequential", "Parallel"] = "Sequential"
    order: list[str] = []


class Restart(GraphModel):
    """A changed id restarts the graph."""

    id: NonEmpty
    strategy: RestartStrategy | None = None


class GraphTopology(GraphModel):
    """How closely the graph is packed."""

    topology_profile: NonEmpty
    pack_domain: PackDomain | None = None


class KvTransferPolicy(GraphModel):
    """Which prefill and decode workers may exchange KV blocks, by their place in the cluster."""

    label_key: Annotated[str, Field(max_length=317)] | None = None
    cluster_topology_name: str | None = None
    domain: NonEmpty
    enforcement: Literal["required", "preferred"] = "required"
    preferred_weight: Annotated[float, Field(ge=0, le=1)] | None = None


class Experimental(GraphModel):
    """Blocks that may change."""

    kv_transfer_policy: KvTransferPolicy | None = None


class GraphSpec(GraphModel):
    """``spec``."""

    hints: ClassVar[Mapping[str, str]] = {"components": "v1alpha1 calls it 'services', a map by name"}

    services: dict[str, ServiceSpec] = {}
    envs: list[EnvVar] = []
    """For every service; a service's own come later and win."""
    pvcs: Annotated[list[PersistentVolume], Field(max_length=100)] = []
    backend_framework: Literal["sglang", "vllm", "trtllm"] | None = None
    restart: Restart | None = None
    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}
    topology_constraint: GraphTopology | None = None
    experimental: Experimental | None = None
    priority_class_name: str | None = None
    provider_override: Opaque | None = None
    dynamo_graph: Annotated[str | None, Obsolete("remove it: graphs are not built from an archive any more")] = None


class DynamoGraphDeployment(GraphModel):
    """A graph of components, as ``dynamo serve`` and the operator read it."""

    api_version: Literal["nvidia.com/v1alpha1"] = API_VERSION
    kind: Literal["DynamoGraphDeployment"] = KIND
    metadata: ObjectMeta
    spec: GraphSpec
    status: Opaque | None = None

    @property
    def name(self) -> str:
        """The graph's name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """Kubernetes namespace; ``default`` if the document names none."""
        return self.metadata.namespace or "default"
