"""What the tests with a real engine share: they are skipped where there is no vLLM, and ask engines in the same way."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from dynamo.protocols.engine import EngineConfig, LLMEngine
from dynamo.protocols.llm import (
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    pack_token_ids,
)
from dynamo.runtime.context import Context

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs vLLM where it is not installed."""
    if item.get_closest_marker("vllm") and not HAS_VLLM:
        pytest.skip('vLLM is not installed; nox -s "engine(vllm)" has it')


class RunningEngine:
    """A started engine, and a way to ask it: greedily, for 24 tokens, unless told otherwise."""

    def __init__(self, engine: LLMEngine, config: EngineConfig) -> None:
        self.engine: Any = engine
        self.config = config
        self._number = 0

    def request(self, ids: Sequence[int], **fields: Any) -> PreprocessedRequest:
        self._number += 1
        fields = {"sampling": SamplingOptions(temperature=0.0), "stop": StopConditions(max_tokens=24), **fields}
        return PreprocessedRequest(f"r{self._number}", self.config.model, pack_token_ids(list(ids)), **fields)

    def stream(self, request: PreprocessedRequest) -> AsyncIterator[LLMEngineOutput]:
        return self.engine.generate(request, Context(request.request_id))

    async def run(self, ids: Sequence[int], **fields: Any) -> tuple[list[int], LLMEngineOutput]:
        """All ids, and the last output."""
        outputs = [output async for output in self.stream(self.request(ids, **fields))]
        return [token for output in outputs for token in output.token_ids], outputs[-1]


@pytest.fixture(scope="session")
def running() -> Callable[[LLMEngine], AbstractAsyncContextManager[RunningEngine]]:
    """``async with running(engine) as started``: it starts, and is cleaned up."""

    @contextlib.asynccontextmanager
    async def start(engine: LLMEngine) -> AsyncIterator[RunningEngine]:
        try:
            yield RunningEngine(engine, await engine.start())
        finally:
            await engine.cleanup()

    return start
