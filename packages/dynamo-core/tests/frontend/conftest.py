"""A whole deployment in one process: real worker host, real planes, real HTTP; only discovery is the in-memory one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest

from dynamo.frontend.app import Frontend
from dynamo.frontend.settings import FrontendSettings
from dynamo.plugins import plugins
from dynamo.protocols.engine import EngineOptions
from dynamo.router.settings import RouterSettings
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.settings import RuntimeSettings
from dynamo.worker.host import Worker
from dynamo.worker.settings import WorkerSettings

TIMEOUT = 20.0


class Deployment:
    """A frontend and any number of workers."""

    def __init__(self, state_dir, **frontend_settings):
        self.settings = RuntimeSettings(
            discovery_backend=f"memory://{uuid.uuid4().hex}", state_dir=str(state_dir), plane_secret="s"
        )
        self._frontend_settings = {"http_host": "127.0.0.1", "http_port": 0, "drain_grace_seconds": 0}
        self._frontend_settings.update(frontend_settings)
        self._running: list[tuple[DistributedRuntime, asyncio.Task[None]]] = []
        self.engines = []

    async def add_worker(self, backend="echo", model=None, name=None, argv=(), **settings) -> DistributedRuntime:
        engine = plugins().engines.get(backend)(EngineOptions(model=model, served_model_name=name, argv=tuple(argv)))
        return await self.add_engine(engine, backend, **settings)

    async def add_engine(self, engine, backend="echo", **settings) -> DistributedRuntime:
        self.engines.append(engine)
        runtime = DistributedRuntime(self.settings)
        await runtime.start()
        worker = Worker(engine, backend, WorkerSettings(drain_grace_seconds=0.2, **settings), runtime)
        self._running.append((runtime, asyncio.create_task(worker.run())))
        return runtime

    async def start_frontend(self, make_plane=None, **router_settings) -> None:
        self.frontend_runtime = DistributedRuntime(self.settings)
        if make_plane is not None:
            self.frontend_runtime.request_plane = make_plane(self.frontend_runtime.request_plane.options)
        await self.frontend_runtime.start()
        self.frontend = Frontend(
            FrontendSettings(**self._frontend_settings), RouterSettings(**router_settings), self.frontend_runtime
        )
        self._running.append((self.frontend_runtime, asyncio.create_task(self.frontend.run())))
        await self.until(lambda: self.frontend.server.port)
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.frontend.server.port}", timeout=TIMEOUT)

    async def until(self, condition) -> None:
        async def poll():
            while not condition():
                for _, task in self._running:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.005)

        await asyncio.wait_for(poll(), TIMEOUT)

    async def serves(self, model: str, workers: int = 1) -> None:
        def ready():
            found = self.frontend.models.names().get(model)
            return found is not None and len(found.candidates) == workers

        await self.until(ready)

    async def stop(self, runtime: DistributedRuntime) -> None:
        """Stop one process as SIGTERM would."""
        for index, (known, task) in enumerate(self._running):
            if known is runtime:
                del self._running[index]
                runtime.stopping.set()
                await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), TIMEOUT)
                await runtime.close()
                return

    async def close(self) -> None:
        if hasattr(self, "client"):
            await self.client.aclose()
        for runtime, _ in list(reversed(self._running)):
            await self.stop(runtime)


@pytest.fixture
async def make_deployment(tmp_path) -> AsyncIterator:
    async with contextlib.AsyncExitStack() as stack:

        async def make(*workers, router=None, make_plane=None, **frontend_settings) -> Deployment:
            deployment = Deployment(tmp_path, **frontend_settings)
            stack.push_async_callback(deployment.close)
            for worker in workers:
                await deployment.add_worker(**worker)
            await deployment.start_frontend(make_plane, **(router or {}))
            return deployment

        yield make


@pytest.fixture
async def echo(make_deployment) -> Deployment:
    """One echo worker: every prompt comes back."""
    deployment = await make_deployment({"backend": "echo"})
    await deployment.serves("echo")
    return deployment


@pytest.fixture
async def demo(make_deployment) -> Deployment:
    """One reference worker with the demo model."""
    deployment = await make_deployment({"backend": "reference", "name": "demo"})
    await deployment.serves("demo")
    return deployment


@pytest.fixture
async def scripted(make_deployment, tmp_path):
    """An echo worker that answers with what a test scripts, parsed by the formats it names."""

    async def make(text, tool_parser="", reasoning_parser=""):
        script = tmp_path / "script.jsonl"
        script.write_text(json.dumps({"text": text}) + "\n")
        deployment = await make_deployment(
            {
                "backend": "echo",
                "argv": ["--script", str(script)],
                "tool_call_parser": tool_parser,
                "reasoning_parser": reasoning_parser,
            }
        )
        await deployment.serves("echo")
        return deployment

    return make
