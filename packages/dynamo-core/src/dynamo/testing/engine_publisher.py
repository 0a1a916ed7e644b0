"""The KV event sockets of an engine without the engine, for tests of what follows them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

__all__ = ["EnginePublisher", "stored_event"]

_encode = msgspec.msgpack.encode
_END = b"\xff" * 8


class EnginePublisher:
    """Publishes as vLLM does: numbers from 0, a bounded buffer for replays.

    Raises:
        zmq.ZMQError: a port is taken.
    """

    def __init__(
        self, port: int = 0, replay_port: int = 0, *, topic: str = "kv", buffer_steps: int = 1000, replay_limit: int = 0
    ) -> None:
        """A port of 0 takes a free one.

        A replay of more than `replay_limit` messages, where that is not 0, loses what lies between the first so many
        and the last, as it does when a queue is full.
        """
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self._replays = self.context.socket(zmq.ROUTER)
        # Every subscription is passed on, not only the first to a topic.
        self.socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        try:
            self.port = _bind(self.socket, port)
            self.replay_port = _bind(self._replays, replay_port)
        except zmq.ZMQError:
            self.context.destroy(linger=0)
            raise
        self.topic = topic.encode()
        self.number = 0
        """Of the next message."""
        self.asked: list[int] = []
        """First numbers that replays were asked from."""
        self._limit = replay_limit
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)
        self._answering = asyncio.get_running_loop().create_task(self._answer())

    async def subscribed(self) -> None:
        """Wait for a subscriber."""
        await asyncio.wait_for(self.socket.recv(), 10)

    async def publish(self, *events: Any, lose: bool = False, payload: bytes | None = None) -> None:
        """One engine step. With `lose` subscribers do not get the message, as when a queue is full; replays have it."""
        payload = payload or _encode([1000.0 + self.number, list(events), 0])
        self._buffer.append((self.number, payload))
        if not lose:
            await self.socket.send_multipart([self.topic, self.number.to_bytes(8, "big"), payload])
        self.number += 1

    def begin_anew(self) -> None:
        """Be another engine at the same address: numbers begin at 0, and nothing of before can be replayed."""
        self.number = 0
        self._buffer.clear()

    async def stop_answering(self) -> None:
        """Answer no replays any more."""
        self._answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._answering

    async def close(self) -> None:
        """Free the ports."""
        await self.stop_answering()
        self.context.destroy(linger=0)

    async def _answer(self) -> None:
        while True:
            client, _, start = await self._replays.recv_multipart()
            first = int.from_bytes(start, "big")
            self.asked.append(first)
            wanted = [entry for entry in self._buffer if entry[0] >= first]
            if self._limit and len(wanted) > self._limit:
                wanted = [*wanted[: self._limit], wanted[-1]]
            for number, payload in wanted:
                await self._replays.send_multipart([client, b"", self.topic, number.to_bytes(8, "big"), payload])
            await self._replays.send_multipart([client, b"", b"", _END, b""])


def stored_event(
    hashes: Sequence[int], token_ids: Sequence[int], *, parent: int | None = None, block_size: int
) -> dict[str, Any]:
    """A ``BlockStored`` as vLLM sends it."""
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "token_ids": list(token_ids),
        "block_size": block_size,
        "lora_id": None,
        "medium": "GPU",
    }


def _bind(socket: zmq.asyncio.Socket, port: int) -> int:
    if port:
        socket.bind(f"tcp://127.0.0.1:{port}")
        return port
    return int(socket.bind_to_random_port("tcp://127.0.0.1"))
