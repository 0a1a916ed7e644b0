"""What ``dynamo serve`` is going to run: made of flags here, of a graph file in `dynamo.serve.graph_file`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dynamo.plugins import plugins
from dynamo.protocols.scheduling import ComponentSpec
from dynamo.serve.allocator import free_port
from dynamo.serve.settings import ServeSettings

__all__ = ["DEFAULT_PORT", "Deployment", "from_flags", "thread_environment"]

DEFAULT_PORT = 8000
#: One BLAS thread per worker: small matrices gain nothing from more, and workers would fight for the cores.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Deployment:
    """Resolved components and where the API will be."""

    components: Sequence[ComponentSpec]
    host: str
    port: int | None
    """Port of the OpenAI API; None: nothing here serves it."""
    notes: Sequence[str] = field(default_factory=tuple)
    """What is different from the cluster, for the user."""
    served: str = ""
    """The model, or the name of the graph: what belongs to it outlives the run."""


def from_flags(
    settings: ServeSettings,
    engine_args: Sequence[str],
    environ: Mapping[str, str],
    frontend_args: Sequence[str] = (),
) -> Deployment:
    """Frontends on one port, and workers of one backend; each with the further arguments of its own.

    Raises:
        PluginNotFound, PluginConflict: no such backend, or two of that name.
    """
    plugins().engines.registration(settings.backend)
    port = DEFAULT_PORT if settings.port is None else settings.port
    port = port or free_port(settings.host)
    frontend = ["python3", "-m", "dynamo.frontend", "--http-host", settings.host, "--http-port", str(port)]
    frontend += ["--router-mode", settings.router_mode]
    frontend += ["--http-reuse-port"] if settings.frontends > 1 else []
    frontend += frontend_args
    worker = ["python3", "-m", "dynamo.worker", "--backend", settings.backend]
    for flag, value in (("--model", settings.model), ("--served-model-name", settings.served_model_name)):
        worker += [flag, value] if value else []
    components = [
        ComponentSpec("frontend", tuple(frontend), kind="frontend", replicas=settings.frontends),
        ComponentSpec(
            "worker",
            (*worker, *engine_args),
            replicas=settings.replicas,
            env=thread_environment(settings.backend, environ),
            resources={"gpu": str(settings.gpus)} if settings.gpus else {},
        ),
    ]
    served = settings.served_model_name or settings.model or settings.backend
    return Deployment(components, settings.host, port, served=served)


def thread_environment(backend: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Thread limits for workers that compute with numpy, unless the user set their own."""
    if backend != "reference":
        return {}
    return {name: value for name, value in _ONE_THREAD.items() if name not in environ}
