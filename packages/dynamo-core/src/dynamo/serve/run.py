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

from dynamo.config.variables import warned_of
from dynamo.errors import EngineError
from dynamo.protocols.scheduling import ComponentSpec
from dynamo.serve.allocator import check_port_free
from dynamo.serve.console import Console
from dynamo.serve.deployment import Deployment
from dynamo.serve.scheduler import LocalScheduler
from dynamo.serve.settings import ServeSettings
from dynamo.serve.snippets import Serving, ready_text
from dynamo.serve.state import new_run_directory
from dynamo.serve.store import choose_store

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
    store = choose_store(settings, deployment.served)
    directory = new_run_directory(settings.state_dir)
    console = Console(verbose=verbose, labels=[spec.name for spec in deployment.components])
    try:
        asyncio.run(_Run(deployment, settings, directory, store, console).main())
    finally:
        console.close()
        shutil.rmtree(directory, ignore_errors=True)


class _Run:
    def __init__(
        self,
        deployment: Deployment,
        settings: ServeSettings,
        directory: Path,
        store: Path | None,
        console: Console,
    ) -> None:
        self._deployment = deployment
        self._store = store
        self._timeout_seconds = settings.ready_timeout_seconds
        shared = _run_environment(directory, settings)
        kept = {"DYN_STORE_DIR": "" if store is None else str(store)}
        self._components = [
            _on_this_machine(spec, kept if spec.kind == "frontend" else {}, shared) for spec in deployment.components
        ]
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
        if any(spec.kind == "frontend" for spec in self._components):
            where = f"in {self._store}" if self._store is not None else "until this run ends"
            self._console.event(f"files, batches and responses are kept {where}")
        await self._scheduler.apply(self._components)
        progress = asyncio.create_task(self._show_progress())
        try:
            serving = await asyncio.wait_for(self._wait_until_it_answers(), self._timeout_seconds)
        except asyncio.TimeoutError as error:
            raise EngineError(
                f"not ready after {self._timeout_seconds:g} s: {await self._waiting_for()}",
                hint="a large model may need more: --ready-timeout SECONDS",
            ) from error
        finally:
            progress.cancel()
        self._console.status("")
        if serving is not None:
            parts = [f"{spec.name} x{spec.replicas}" if spec.replicas > 1 else spec.name for spec in self._components]
            host, port = self._deployment.host, self._deployment.port
            self._console.text(ready_text(serving, host, port, ", ".join(parts), time.monotonic() - started))
        else:
            self._console.event("all components are ready; Ctrl-C stops everything")

    async def _wait_until_it_answers(self) -> Serving | None:
        """What the frontend that has the port serves, once each of its replicas has a model; None where none can tell.

        It is asked on its system port, which needs no certificate and no API key.
        """
        await self._scheduler.wait_ready()
        frontend = next((spec.name for spec in self._components if _tells_what_it_serves(spec)), None)
        if frontend is None:
            return None
        while True:
            # Raises when one of them has been given up since it was ready.
            await self._scheduler.wait_ready()
            found = [_read_serving(*answer) for answer in await self._scheduler.ask(frontend, "/serving")]
            if found and all(serving is not None and serving.models for serving in found):
                return found[0]
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
        **warned_of(os.environ),
    }
    if "log_level" in settings.model_fields_set:
        environment["DYN_LOG"] = settings.log_level
    return environment


def _on_this_machine(spec: ComponentSpec, kept: Mapping[str, str], shared: Mapping[str, str]) -> ComponentSpec:
    drains = {"DYN_DRAIN_GRACE_SECONDS": _DRAIN_SECONDS, "DYN_FRONTEND_DRAIN_GRACE_SECONDS": _DRAIN_SECONDS}
    defaults = {name: value for name, value in drains.items() if name not in os.environ}
    return msgspec.structs.replace(spec, env={**defaults, **kept, **spec.env, **shared})


def _tells_what_it_serves(spec: ComponentSpec) -> bool:
    """Whether it is our frontend: a graph may name another program as its frontend, which has no such page."""
    return spec.kind == "frontend" and any("dynamo.frontend" in argument for argument in spec.argv)


def _read_serving(status: int, body: bytes) -> Serving | None:
    try:
        return msgspec.json.decode(body, type=Serving) if status == 200 else None
    except msgspec.MsgspecError:
        return None
