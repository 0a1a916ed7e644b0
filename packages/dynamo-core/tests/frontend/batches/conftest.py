"""The SDK as a client of a deployment in this process, and batches as it makes them."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

TIMEOUT = 30.0
ENDED = ("completed", "failed", "expired", "cancelled")


class Client:
    """`openai.AsyncOpenAI`, unchanged, and shortcuts."""

    def __init__(self, port, key="none"):
        self.sdk = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)

    @staticmethod
    def line(number, parameters=None, url="/v1/chat/completions", **fields):
        """One line of an input file, as bytes."""
        if parameters is None:
            parameters = {"messages": [{"role": "user", "content": f"say {number}"}], "max_tokens": 8}
        request = {"custom_id": f"c{number}", "method": "POST", "url": url, "body": {"model": "echo", **parameters}}
        return json.dumps({**request, **fields}).encode()

    async def upload(self, lines, name="input.jsonl"):
        return await self.sdk.files.create(file=(name, b"\n".join(lines) + b"\n"), purpose="batch")

    async def submit(self, lines, endpoint="/v1/chat/completions", window="24h", **fields):
        file = await self.upload(lines)
        return await self.sdk.batches.create(
            input_file_id=file.id, endpoint=endpoint, completion_window=window, **fields
        )

    async def until(self, batch, statuses=ENDED):
        async def poll():
            while True:
                found = await self.sdk.batches.retrieve(batch.id)
                if found.status in statuses:
                    return found
                await asyncio.sleep(0.01)

        return await asyncio.wait_for(poll(), TIMEOUT)

    async def rows(self, file_id):
        """Lines of an output or error file."""
        if file_id is None:
            return []
        text = (await self.sdk.files.content(file_id)).text
        return [json.loads(row) for row in text.splitlines()]


@pytest.fixture
async def client_of():
    clients = []

    def make(deployment, key="none"):
        clients.append(Client(deployment.frontend.server.port, key))
        return clients[-1]

    yield make
    for client in clients:
        await client.sdk.close()


@pytest.fixture
async def client(echo, client_of):
    return client_of(echo)
