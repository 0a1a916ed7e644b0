"""A worker that is no LLM: it counts the words of each line."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import msgspec

from dynamo.config import load_settings
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.context import RequestContext
from dynamo.runtime.distributed import DistributedRuntime, run_process
from dynamo.runtime.server import iterator_handler
from dynamo.runtime.settings import RuntimeSettings


class CountWords(msgspec.Struct):
    """What a client sends."""

    text: str


async def count_words(request: CountWords, context: RequestContext) -> AsyncIterator[dict[str, int]]:
    """One item for each line."""
    for number, line in enumerate(request.text.splitlines(), 1):
        if context.cancelled:
            return
        yield {"line": number, "words": len(line.split())}


async def serve(runtime: DistributedRuntime) -> None:
    """Serve until SIGTERM, then finish what runs."""
    address = EndpointAddress.of(runtime.settings.namespace, "counter", "count_words")
    await runtime.serve_endpoint(address, iterator_handler(count_words, CountWords))
    print(f"serving {address}", flush=True)
    await runtime.stopping.wait()
    await runtime.drain(grace_seconds=10)


if __name__ == "__main__":
    run_process(load_settings(RuntimeSettings, environ=os.environ), serve)
