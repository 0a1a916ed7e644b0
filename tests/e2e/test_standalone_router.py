"""``python3 -m dynamo.router`` before real workers: it streams, finds prefixes, survives deaths, and refuses politely."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from dynamo.errors import DynamoError, InvalidRequest, ModelNotFound
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.llm import LLMEngineOutput, PreprocessedRequest, StopConditions, pack_token_ids
from dynamo.router.standalone.service import Selection
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import EXIT_CONFIG, DistributedRuntime
from dynamo.runtime.settings import RuntimeSettings
from tests.e2e.processes import START_SECONDS, Deployment, Process, deployment, wait_until

pytestmark = pytest.mark.e2e

WORKERS = 2
FLAGS = ["--endpoint", "dynamo.backend.generate", "--block-size", "16"]
WRONG = [
    ({"request_id": "x", "model": "other", "token_ids": b"\0\0\0\0"}, ModelNotFound),
    ({"request_id": "x", "model": "echo", "token_ids": b"\0\0\0"}, InvalidRequest),
    ({"request_id": "x", "model": "echo", "token_ids": b""}, InvalidRequest),
    ({"model": "echo"}, InvalidRequest),
    ([1, 2], InvalidRequest),
]


class Asker:
    """A program that asks the router over the request plane."""

    def __init__(self, made: Deployment, router: Process, runtime: DistributedRuntime) -> None:
        self.made = made
        self.router = router
        self.runtime = runtime
        self._asked = 0

    def _client(self, endpoint: str):
        return self.runtime.client(EndpointAddress.of("dynamo", "router", endpoint))

    async def generate(self, tokens: list[int], model: str = "echo") -> list[int]:
        self._asked += 1
        request = PreprocessedRequest(
            f"r{self._asked}", model, pack_token_ids(tokens), stop=StopConditions(max_tokens=8)
        )
        found: list[int] = []
        outputs = self._client("generate").round_robin(request, Context(request.request_id), LLMEngineOutput)
        async for output in outputs:
            found += output.token_ids
            reason = output.finish_reason
        assert reason == "length"
        return found

    async def select(self, tokens: list[int], endpoint: str = "select") -> Selection:
        request = PreprocessedRequest("s", "echo", pack_token_ids(tokens))
        [found] = [item async for item in self._client(endpoint).round_robin(request, Context("s"), Selection)]
        return found

    async def until(self, condition) -> None:
        await asyncio.to_thread(wait_until, condition, "what was waited for", *self.made.processes)


@pytest.fixture
async def asker(tmp_path: Path) -> AsyncIterator[Asker]:
    with deployment(tmp_path) as made:
        for _ in range(WORKERS):
            made.worker()
        router = made._add(Process(["dynamo.router", *FLAGS], made.env, made._log()))
        for process in made.processes:
            process.until_ready()
        settings = RuntimeSettings(discovery_backend="file", state_dir=str(tmp_path / "state"), plane_secret="test")
        async with DistributedRuntime(settings) as runtime:
            asker = Asker(made, router, runtime)
            await asker.until(lambda: len({r.instance_id for r in runtime.instances.all()}) == WORKERS + 1)
            yield asker


async def test_it_streams_finds_prefixes_survives_a_death_and_refuses(asker: Asker) -> None:
    prompts = [list(range(100 * n, 100 * n + 80)) for n in range(1, 5)]
    for prompt in prompts:
        assert await asker.generate(prompt) == prompt[:8]  # an echo
    await asker.until(lambda: asker.router.metric("dynamo_router_index_blocks") >= 5 * len(prompts))
    homes = {}
    for prompt in prompts:
        found = await asker.select([*prompt, 7, 7])
        assert (found.overlap_blocks, found.block_size_tokens) == (5, 16)
        assert await asker.select([*prompt, 8], "best_worker_id") == found
        homes[prompt[0]] = found.instance_id
    assert asker.router.metric("dynamo_router_decisions_total") == len(prompts)  # asking is no decision

    asker.made.processes[0].kill()
    for prompt in prompts:
        assert await asker.generate(prompt) == prompt[:8]
    # Until discovery knows of the death, a selection may still name the dead worker.
    alive = asker.runtime.instances
    await asker.until(lambda: len({r.instance_id for r in alive.all()}) == WORKERS)
    await asyncio.wait_for(_until_one_is_left(asker, prompts), START_SECONDS)

    for payload, error in WRONG:
        for endpoint in ("generate", "select"):
            with pytest.raises(DynamoError) as caught:
                async for _ in asker._client(endpoint).round_robin(payload, Context("x"), msgspec.Raw):
                    pass
            assert caught.value.code == error.code


async def _until_one_is_left(asker: Asker, prompts: list[list[int]]) -> None:
    while len({(await asker.select(prompt)).instance_id for prompt in prompts}) > 1:
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--endpoint NAMESPACE.COMPONENT.ENDPOINT"),
        (["--endpoint", "backend.generate"], "has 2 parts"),
        (["--endpoint", "a.b.c", "--router-mode", "best"], "unknown router mode 'best'"),
        (["--endpoint", "a.b.c", "--router-shadow-mode", "kv:colour=red"], "there is no setting 'colour'"),
    ],
)
def test_wrong_flags_stop_the_start(tmp_path: Path, flags: list[str], said: str) -> None:
    env = {**os.environ, "DYN_DISCOVERY_BACKEND": "mem", "DYN_STATE_DIR": str(tmp_path), "DYN_SYSTEM_PORT": "-1"}
    command = [sys.executable, "-m", "dynamo.router", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    assert done.returncode == EXIT_CONFIG
    assert said in done.stderr
    assert "Traceback" not in done.stderr
