"""Where processes run and how many: what a `Scheduler` plugin is given and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

__all__ = ["ComponentSpec", "ComponentStatus", "ReplicaState", "ReplicaStatus", "Scheduler"]

ReplicaState = Literal["starting", "ready", "failing", "stopping", "stopped"]


class ComponentSpec(msgspec.Struct, frozen=True):
    """One component of a graph, resolved: what to run, how often."""

    name: str
    argv: tuple[str, ...]
    kind: str = "worker"
    """Component type of the graph: frontend, worker, prefill, decode, planner, ..."""
    replicas: int = 1
    env: dict[str, str] = {}
    """Added to the scheduler's own environment."""
    resources: dict[str, str] = {}
    """Kubernetes quantities by resource name, e.g. ``{"cpu": "2", "memory": "4Gi", "gpu": "1"}``."""
    working_directory: str | None = None
    stop_grace_seconds: float = 15.0
    """Between SIGTERM and SIGKILL."""


class ReplicaStatus(msgspec.Struct, frozen=True):
    """One process of a component."""

    index: int
    state: ReplicaState
    pid: int | None = None
    restarts: int = 0
    message: str = ""


class ComponentStatus(msgspec.Struct, frozen=True):
    """A component as it is."""

    name: str
    desired_replicas: int
    generation: int
    """Grows with every change of what is desired."""
    replicas: list[ReplicaStatus] = []

    @property
    def ready_replicas(self) -> int:
        """Replicas that passed their readiness check."""
        return sum(replica.state == "ready" for replica in self.replicas)


class Scheduler(Protocol):
    """Runs components. Methods are called on one event loop."""

    async def apply(self, components: Sequence[ComponentSpec]) -> None:
        """Make what runs equal to `components`: start, change, stop.

        Raises:
            ConfigError: a component cannot run here; the message names it.
        """
        ...

    async def scale(self, component: str, replicas: int, *, expected_generation: int | None = None) -> ComponentStatus:
        """Set the number of replicas.

        Raises:
            ConfigError: no such component, or it changed since `expected_generation`.
        """
        ...

    async def restart(self, component: str) -> None:
        """Replace the component's processes one after the other."""
        ...

    async def status(self) -> Sequence[ComponentStatus]:
        """All components, in the order they were applied."""
        ...

    async def close(self) -> None:
        """Stop everything and leave nothing behind. Idempotent."""
        ...
