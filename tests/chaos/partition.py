"""A network that can be cut: stands between a worker's socket and those who connect to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from typing_extensions import Self


class Partition:
    """Takes over a worker's Unix socket. While it is cut, bytes stay where they are and nobody is told, as when a
    switch drops packets: TCP would send them again and again. Connections can be made, and say nothing.
    """

    def __init__(self, socket_file: Path) -> None:
        self._public = socket_file
        self._hidden = socket_file.with_suffix(".hidden")
        self._whole = asyncio.Event()
        self._whole.set()
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._public.rename(self._hidden)
        self._server = await asyncio.start_unix_server(self._serve, str(self._public))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        self._whole.clear()

    def heal(self) -> None:
        self._whole.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        async with _closing(writer), contextlib.AsyncExitStack() as stack:
            await self._whole.wait()
            with contextlib.suppress(OSError):
                beyond_reader, beyond_writer = await asyncio.open_unix_connection(str(self._hidden))
                await stack.enter_async_context(_closing(beyond_writer))
                await asyncio.gather(self._carry(reader, beyond_writer), self._carry(beyond_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        await self._whole.wait()
        writer.close()


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()
