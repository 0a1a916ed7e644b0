"""The ``local`` scheduler: components as processes of this machine. ``dynamo serve`` runs one."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from dynamo.errors import ConfigError, EngineError
from dynamo.protocols.scheduling import ComponentSpec, ComponentStatus
from dynamo.serve.allocator import GpuAllocator, visible_gpus
from dynamo.serve.backoff import RestartPolicy
from dynamo.serve.console import Console
from dynamo.serve.control import ControlServer
from dynamo.serve.process import Guardian
from dynamo.serve.replica import Output, Replica

__all__ = ["LocalScheduler"]


@dataclass
class _Component:
    spec: ComponentSpec
    generation: int = 1
    replicas: list[Replica] = field(default_factory=list)

    def status(self) -> ComponentStatus:
        statuses = [replica.status() for replica in self.replicas]
        return ComponentStatus(self.spec.name, self.spec.replicas, self.generation, statuses)


class LocalScheduler:
    """Implements `dynamo.protocols.scheduling.Scheduler` on one event loop.

    Other processes of the same user reach it through a Unix socket in `state_dir` (`dynamo.serve.control`).
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        output: Output | None = None,
        policy: RestartPolicy | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._state_dir = state_dir
        self._console: Console | None = None
        if output is None:
            output = self._console = Console()
        self._output: Output = output
        self._policy = policy or RestartPolicy()
        self._environ = dict(os.environ if environ is None else environ)
        self._components: dict[str, _Component] = {}
        self._guard = Guardian()
        self._gpus: GpuAllocator | None = None
        self._control: ControlServer | None = None
        self._lock_file: IO[str] | None = None
        # One change at a time; `status` and `close` do not wait for it.
        self._changing = asyncio.Lock()
        self._closing = False

    async def apply(self, components: Sequence[ComponentSpec]) -> None:
        """See `Scheduler.apply`. A changed component is replaced replica by replica, waiting for each to be ready.

        Raises:
            ConfigError: a component cannot run here, or another scheduler uses the state directory. Nothing changed.
            EngineError: a replica of a changed component did not become ready; the rest of it runs as before.
        """
        _check_specs(components)
        async with self._changing:
            await self._open()
            await self._check_gpus(components)
            wanted = {spec.name: spec for spec in components}
            for name in [name for name in self._components if name not in wanted]:
                await self._stop(self._components.pop(name).replicas)
            await self._change(components)
            self._components = {name: self._components[name] for name in wanted}

    async def scale(self, component: str, replicas: int, *, expected_generation: int | None = None) -> ComponentStatus:
        """See `Scheduler.scale`. Does not wait for new replicas to be ready."""
        async with self._changing:
            found = self._find(component)
            if expected_generation is not None and expected_generation != found.generation:
                raise ConfigError(
                    f"{component} is at generation {found.generation}, not {expected_generation}",
                    hint="somebody else changed it: read its status and decide again",
                )
            spec = msgspec.structs.replace(found.spec, replicas=replicas)
            others = [c.spec for c in self._components.values() if c is not found]
            _check_specs([spec])
            await self._check_gpus([*others, spec])
            await self._change([spec])
            return found.status()

    async def restart(self, component: str) -> None:
        """See `Scheduler.restart`.

        Raises:
            ConfigError: no such component.
            EngineError: a new replica did not become ready; the ones after it were not touched.
        """
        async with self._changing:
            found = self._find(component)
            await self._replace(found, list(found.replicas))

    async def status(self) -> Sequence[ComponentStatus]:
        """See `Scheduler.status`."""
        return [component.status() for component in self._components.values()]

    async def ask(self, component: str, path: str) -> list[tuple[int, bytes]]:
        """What each replica answers on its system port: HTTP status, 0 when nobody answers, and body."""
        return [await replica.ask(path) for replica in self._find(component).replicas]

    async def wait_ready(self) -> None:
        """Return when every replica was ready once.

        Raises:
            EngineError: one was given up or stopped; the hint ends with its last log lines.
        """
        await _all(replica.wait_ready() for replica in self._replicas())

    async def close(self) -> None:
        """See `Scheduler.close`. All components stop at once: frontends and workers drain what they have."""
        self._closing = True
        # Ends the waiting of a change that is under way, and with it the change.
        await self._stop(self._replicas())
        async with self._changing:
            self._components.clear()
            await self._guard.close()
            if self._control is not None:
                await self._control.close()
                self._control = None
            if self._lock_file is not None:
                self._lock_file.close()
                self._lock_file = None
        if self._console is not None:
            self._console.close()

    def kill(self) -> None:
        """SIGKILL to everything, for the user who does not want to wait for `close`."""
        for replica in self._replicas():
            replica.kill()

    async def _open(self) -> None:
        if self._closing:
            raise EngineError("the scheduler is stopping")
        if self._control is not None:
            return
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_file = _lock(self._state_dir)
        self._control = ControlServer(self)
        await self._control.start(self._state_dir)

    async def _change(self, specs: Sequence[ComponentSpec]) -> None:
        """Shrink, then grow, then replace what runs with an older command: GPUs are free before they are needed."""
        for spec in specs:
            component = self._components.setdefault(spec.name, _Component(spec))
            if spec != component.spec:
                component.spec = spec
                component.generation += 1
            surplus, component.replicas = component.replicas[spec.replicas :], component.replicas[: spec.replicas]
            await self._stop(surplus)
        for spec in specs:
            component = self._components[spec.name]
            for index in range(len(component.replicas), spec.replicas):
                component.replicas.append(self._start(spec, index))
        for spec in specs:
            component = self._components[spec.name]
            await self._replace(component, [r for r in component.replicas if not _same_process(r.spec, spec)])

    async def _replace(self, component: _Component, replicas: Sequence[Replica]) -> None:
        for old in replicas:
            await self._stop([old])
            new = component.replicas[component.replicas.index(old)] = self._start(component.spec, old.index)
            await new.wait_ready()

    def _start(self, spec: ComponentSpec, index: int) -> Replica:
        if self._closing:
            raise EngineError("the scheduler is stopping")
        count = _gpu_count(spec)
        replica = Replica(
            spec,
            index,
            environ=self._environ,
            gpus=self._gpus.take(count, component=spec.name) if self._gpus and count else (),
            guard=self._guard,
            policy=self._policy,
            output=self._output,
        )
        replica.start()
        return replica

    async def _stop(self, replicas: Sequence[Replica]) -> None:
        await _all(replica.stop() for replica in replicas)
        for replica in replicas:
            if self._gpus is not None:
                self._gpus.give_back(replica.gpus)

    async def _check_gpus(self, components: Sequence[ComponentSpec]) -> None:
        """Refuse what cannot fit before anything is stopped or started."""
        if not any(_gpu_count(spec) for spec in components):
            return
        devices = await asyncio.to_thread(visible_gpus)
        if self._gpus is None:
            self._gpus = GpuAllocator(devices)
        planned = GpuAllocator(devices)
        for spec in components:
            for _ in range(spec.replicas):
                planned.take(_gpu_count(spec), component=spec.name)

    def _find(self, component: str) -> _Component:
        found = self._components.get(component)
        if found is None:
            raise ConfigError(
                f"there is no component {component!r}", hint=f"running: {', '.join(self._components) or 'none'}"
            )
        return found

    def _replicas(self) -> list[Replica]:
        return [replica for component in self._components.values() for replica in component.replicas]


async def _all(waits: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all; the first exception cancels the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _check_specs(components: Sequence[ComponentSpec]) -> None:
    seen: set[str] = set()
    for spec in components:
        if spec.name in seen:
            raise ConfigError(f"two components are called {spec.name!r}")
        seen.add(spec.name)
        if not spec.argv:
            raise ConfigError(f"{spec.name} has no command")
        if spec.replicas < 0:
            raise ConfigError(f"{spec.name}: replicas must be 0 or more, got {spec.replicas}", param="replicas")
        if spec.working_directory is not None and not Path(spec.working_directory).is_dir():
            raise ConfigError(f"{spec.name}: working directory {spec.working_directory} does not exist")
        _gpu_count(spec)


def _same_process(one: ComponentSpec, other: ComponentSpec) -> bool:
    return msgspec.structs.replace(one, replicas=other.replicas) == other


def _gpu_count(spec: ComponentSpec) -> int:
    text = spec.resources.get("gpu", "0")
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"{spec.name}: gpu must be a whole number, got {text!r}", param="resources.gpu")
    return int(text)


def _lock(state_dir: Path) -> IO[str]:
    """Hold the directory while this process lives; the kernel lets go when it dies."""
    file = (state_dir / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(
            f"another scheduler runs in {state_dir}", hint="stop it, or use another directory (--state-dir)"
        ) from error
    return file
