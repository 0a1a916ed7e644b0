"""A worker behind upstream's frontend: answers each request with so many tokens, at once or in steps.

Runs in an environment with `ai-dynamo-runtime`, which shares our namespace; `benchmarks.serving.systems` starts it. It
does what the echo engine does behind ours: every stream gets its next token in each pass of the event loop or, paced,
in steps that all streams take together.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from typing import Any

LLM: Any = importlib.import_module("dynamo.llm")
RUNTIME: Any = importlib.import_module("dynamo.runtime")
MODEL, DIRECTORY, BLOCK_SIZE, RATE = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
TOKENS = [int(token) for token in sys.argv[5].split(",")]
WAITING: list[asyncio.Future[None]] = []


async def step() -> None:
    """Wait for the next step of all streams."""
    if not RATE:
        await asyncio.sleep(0)
        return
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    if not WAITING:
        loop.call_later(1 / RATE, wake)
    WAITING.append(waiter)
    await waiter


def wake() -> None:
    """The step: everybody who waits goes on."""
    waiting = list(WAITING)
    WAITING.clear()
    for waiter in waiting:
        if not waiter.done():
            waiter.set_result(None)


async def generate(request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:  # noqa: ARG001
    """One request of its frontend."""
    wanted = request["stop_conditions"]["max_tokens"]
    for position in range(wanted):
        output: dict[str, Any] = {"token_ids": [TOKENS[position % len(TOKENS)]]}
        if position == wanted - 1:
            output["finish_reason"] = "length"
        yield output
        if position < wanted - 1:
            await step()


async def main() -> None:
    """Announce the model and serve until the process is ended."""
    runtime = RUNTIME.DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    endpoint = runtime.endpoint("dynamo.backend.generate")
    await LLM.register_model(
        LLM.ModelInput.Tokens,
        LLM.ModelType.Chat,
        endpoint,
        DIRECTORY,
        MODEL,
        worker_type=LLM.WorkerType.Aggregated,
        kv_cache_block_size=BLOCK_SIZE,
    )
    await endpoint.serve_endpoint(generate)


if __name__ == "__main__":
    importlib.import_module("uvloop").install()
    asyncio.run(main())
