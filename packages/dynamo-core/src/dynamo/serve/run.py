"""Runs a deployment in the foreground: start, wait until it answers, say so, stop on a signal."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from dynamo.errors import EngineError
from dynamo.protocols.scheduling import ComponentSpec
from dynamo.serve.allocator import check_port_free
from dynamo.serve.console import Console
from dynamo.serve.deployment import Deployment
from dynamo.serve.probe import http_get
from dynamo.serve.scheduler import LocalScheduler
from dynamo.serve.settings import ServeSettings
from dynamo.serve.snippets import reachable_host, ready_text
from dynamo.serve.state import new_run_directory

__all__ = ["run_deployment"]

_POLL_SECONDS = 0.1
#: Drains end before the scheduler's SIGKILL (`ComponentSpec.stop_grace_seconds`) would cut them off.
_DRAIN_SECONDS = "10"


def run_deployment(deployment: Deployment, settings: ServeSettings, *, verbose: bool) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; a second signal kills what is still stopping.

    Raises:
        ConfigError: the port is taken, GPUs are missing, or the state directory cannot be used.
        EngineError: a replica cannot start, or not everything was ready in time.
    """
    if deployment.port is not None:
        check_port_free(deployment.host, deployment.port)
    directory = new_run_directory(settings.state_dir)
    console = Console(verbose=verbose, labels=[spec.name for spec in deployment.components])
    try:
        asyncio.run(_Run(deployment, settings, directory, console).main())
    finally:
        console.close()
        shutil.rmtree(directory, ignore_errors=True)


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


class _Run:
    def __init__(self, deployment: Deployment, settings: ServeSettings, directory: Path, console: Console) -> None:
        self._deployment = deployment
        self._timeout_seconds = settings.ready_timeout_seconds
        shared = _run_environment(directory, settings)
        self._components = [_on_this_machine(spec, shared) for spec in deployment.components]
        self._console = console
        self._scheduler = LocalScheduler(directory, output=console)
        self._stopping = asyncio.Event()

    async def main(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup SIGHUP is ignored, and stays so.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        stopping = asyncio.create_task(self._stopping.wait())
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.wait([stopping, starting], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
        finally:
            self._console.status("stopping")
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await self._scheduler.close()
            self._console.status("")

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._scheduler.kill()
        self._stopping.set()

    async def _start(self) -> None:
        started = time.monotonic()
        for note in self._deployment.notes:
            self._console.event(f"note: {note}")
        await self._scheduler.apply(self._components)
        progress = asyncio.create_task(self._show_progress())
        try:
            models = await asyncio.wait_for(self._wait_until_it_answers(), self._timeout_seconds)
        except asyncio.TimeoutError as error:
            raise EngineError(
                f"not ready after {self._timeout_seconds:g} s: {await self._waiting_for()}",
                hint="a large model may need more: --ready-timeout SECONDS",
            ) from error
        finally:
            progress.cancel()
        self._console.status("")
        if models:
            url = f"http://{reachable_host(self._deployment.host)}:{self._deployment.port}"
            parts = [f"{spec.name} x{spec.replicas}" if spec.replicas > 1 else spec.name for spec in self._components]
            self._console.text(ready_text(url, models, ", ".join(parts), time.monotonic() - started))
        else:
            self._console.event("all components are ready; Ctrl-C stops everything")

    async def _wait_until_it_answers(self) -> list[str]:
        """Model names that the frontend lists; none without a frontend, or when it shows them to its clients only."""
        await self._scheduler.wait_ready()
        if self._deployment.port is None or any(_speaks_tls(spec) for spec in self._components):
            return []
        host = reachable_host(self._deployment.host).strip("[]")
        while True:
            # Raises when one of them has been given up since it was ready.
            await self._scheduler.wait_ready()
            status, body = await http_get(host, self._deployment.port, "/v1/models")
            if status == 200 and (models := _model_names(body)):
                return models
            if status == 401:
                # Models are shown to whoever has an API key; that it asks for one means that it answers.
                return []
            await asyncio.sleep(_POLL_SECONDS)

    async def _show_progress(self) -> None:
        shown = ""
        while True:
            waiting = await self._waiting_for()
            if waiting != shown:
                self._console.status(waiting)
                shown = waiting
            await asyncio.sleep(_POLL_SECONDS)

    async def _waiting_for(self) -> str:
        parts = []
        for component in await self._scheduler.status():
            missing = component.desired_replicas - component.ready_replicas
            if missing:
                count = f" ({component.ready_replicas} of {component.desired_replicas} ready)"
                parts.append(component.name + (count if component.desired_replicas > 1 else ""))
        return f"waiting for {', '.join(parts)}" if parts else "waiting for the model to be listed"


def _run_environment(directory: Path, settings: ServeSettings) -> dict[str, str]:
    """What all processes of this run share, over what a graph file or the shell says."""
    environment = {
        "DYN_STATE_DIR": str(directory),
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_PLANE_SECRET": secrets.token_hex(32),
        "DYN_PLANE_SECRET_FILE": "",
    }
    if "log_level" in settings.model_fields_set:
        environment["DYN_LOG"] = settings.log_level
    return environment


def _on_this_machine(spec: ComponentSpec, shared: Mapping[str, str]) -> ComponentSpec:
    drains = {"DYN_DRAIN_GRACE_SECONDS": _DRAIN_SECONDS, "DYN_FRONTEND_DRAIN_GRACE_SECONDS": _DRAIN_SECONDS}
    defaults = {name: value for name, value in drains.items() if name not in os.environ}
    return msgspec.structs.replace(spec, env={**defaults, **spec.env, **shared})


def _speaks_tls(spec: ComponentSpec) -> bool:
    """Whether this is a frontend that a plain probe cannot ask; the scheduler's own probes say when it is ready."""
    environment = {**os.environ, **spec.env}
    return spec.kind == "frontend" and (
        bool(environment.get("DYN_TLS_CERT_PATH")) or any("--tls-cert-path" in word for word in spec.argv)
    )


def _model_names(body: bytes) -> list[str]:
    try:
        return [model.id for model in msgspec.json.decode(body, type=_ModelList).data]
    except msgspec.MsgspecError:
        return []
