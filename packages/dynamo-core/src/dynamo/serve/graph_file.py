"""A graph file as local processes: each service with the command that its pod would run.

`dynamo.graph` reads and resolves the file; here the components get what a laptop has in place of a cluster: ports
instead of Services, one frontend instead of a load balancer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from dynamo.errors import ConfigError
from dynamo.graph import DynamoGraphDeployment, GraphDocument, Resolution, load_graphs, resolve_components
from dynamo.protocols.scheduling import ComponentSpec
from dynamo.serve.allocator import free_port
from dynamo.serve.deployment import DEFAULT_PORT, Deployment, thread_environment
from dynamo.serve.settings import ServeSettings

__all__ = ["from_graph_file"]

#: Settings of `dynamo serve` that a graph file says itself.
_SAID_BY_THE_FILE = ("backend", "model", "served_model_name", "replicas", "frontends", "gpus")


def from_graph_file(settings: ServeSettings, environ: Mapping[str, str]) -> Deployment:
    """Resolve the one graph of `settings.file`.

    Raises:
        ConfigError: the file is wrong or holds several graphs, or a flag contradicts it.
    """
    given = [name for name in _SAID_BY_THE_FILE if name in settings.model_fields_set]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise ConfigError(f"{flag} does not go with --file", param=flag, hint=f"say it in {settings.file}")
    [document] = _one_graph(load_graphs(Path(settings.file)), settings.file)
    resolution = resolve_components(document.graph)
    notes = list(_notes(document, resolution))
    components: list[ComponentSpec] = []
    port: int | None = None
    for spec in resolution.components:
        local = _local(spec, environ)
        if spec.kind == "frontend":
            if spec.replicas > 1:
                notes.append(f"{spec.name}: runs once; {spec.replicas} replicas need a load balancer in front")
            own = free_port(settings.host) if port is not None else _frontend_port(spec, settings)
            local = _frontend(local, settings, own)
            port = own if port is None else port
        components.append(local)
    return Deployment(components, settings.host, port, notes, document.graph.name)


def _one_graph(documents: Sequence[GraphDocument], file: str) -> Sequence[GraphDocument]:
    if len(documents) != 1:
        names = ", ".join(document.graph.name for document in documents)
        raise ConfigError(f"{file} holds {len(documents)} graphs: {names}", hint="put each into a file of its own")
    return documents


def _notes(document: GraphDocument, resolution: Resolution) -> Iterator[str]:
    graph: DynamoGraphDeployment = document.graph
    for violation in document.warnings:
        yield f"{graph.name}: {violation}"
    for other in document.others:
        yield f"{other.kind} {other.name}: exists in a cluster only"
    for note in resolution.notes:
        yield f"{note.component or graph.name}: {note.subject} {note.message}"


def _local(spec: ComponentSpec, environ: Mapping[str, str]) -> ComponentSpec:
    directory = spec.working_directory
    words = _words(spec)
    uses_reference = "dynamo.reference" in words or _flag_value(words, "--backend") == "reference"
    threads = thread_environment("reference" if uses_reference else "", environ)
    return msgspec.structs.replace(
        spec,
        env={**threads, **spec.env},
        working_directory=directory if directory and Path(directory).is_dir() else None,
    )


def _frontend_port(spec: ComponentSpec, settings: ServeSettings) -> int:
    """``--port``, else what the command or its environment says, else 8000."""
    if settings.port is not None:
        return settings.port or free_port(settings.host)
    said = _flag_value(_words(spec), "--http-port") or spec.env.get("DYN_HTTP_PORT") or str(DEFAULT_PORT)
    if not said.isascii() or not said.isdigit() or int(said) > 65535:
        raise ConfigError(f"{spec.name}: {said!r} is not a port", hint="correct the graph, or give --port")
    return int(said) or free_port(settings.host)


def _frontend(spec: ComponentSpec, settings: ServeSettings, port: int) -> ComponentSpec:
    """`spec` listening where the user wants it: by environment, and by flag where the graph has that flag."""
    wanted = {"--http-host": settings.host, "--http-port": str(port)}
    words = _words(spec)
    argv = list(spec.argv)
    for flag, value in wanted.items():
        said = _flag_value(words, flag)
        if said not in (None, value):
            if _flag_value(argv, flag) is None:
                raise ConfigError(
                    f"{spec.name}: {flag} {said} is inside a shell script, where it cannot be changed to {value}",
                    hint="write the command as a list: [python3, -m, dynamo.frontend]",
                )
            argv += [flag, value]
    env = {**spec.env, "DYN_HTTP_HOST": settings.host, "DYN_HTTP_PORT": str(port)}
    if "router_mode" in settings.model_fields_set:
        env["DYN_ROUTER_MODE"] = settings.router_mode
    return msgspec.structs.replace(spec, argv=tuple(argv), env=env, replicas=min(spec.replicas, 1))


def _words(spec: ComponentSpec) -> list[str]:
    """The words of a command, also of one inside a shell script."""
    return " ".join(spec.argv).split()


def _flag_value(words: Sequence[str], flag: str) -> str | None:
    """The last value of `flag`, as ``--flag value`` or ``--flag=value``."""
    found = None
    for position, word in enumerate(words):
        if word == flag and position + 1 < len(words):
            found = words[position + 1]
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found
