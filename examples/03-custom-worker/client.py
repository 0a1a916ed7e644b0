"""Asks the worker: ``python3 client.py < README.md``."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid

from dynamo.config import load_settings
from dynamo.protocols.addressing import EndpointAddress
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime, run_process
from dynamo.runtime.settings import RuntimeSettings


async def ask(runtime: DistributedRuntime) -> None:
    """Send standard input, print one line for each item of the answer."""
    await asyncio.wait_for(runtime.instances.synced.wait(), timeout=10)
    client = runtime.client(EndpointAddress.of(runtime.settings.namespace, "counter", "count_words"))
    async for item in client.round_robin({"text": sys.stdin.read()}, Context(uuid.uuid4().hex)):
        print(f"line {item['line']}: {item['words']} words")


if __name__ == "__main__":
    run_process(load_settings(RuntimeSettings, environ=os.environ), ask)
