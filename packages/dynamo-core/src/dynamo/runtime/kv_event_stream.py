"""Follows the ZeroMQ publisher of one engine rank without losing anything that can still be had.

vLLM and SGLang publish ``[topic, number, payload]``, the number counting from 0, and answer on a replay socket with
what they still have from a number on. Messages get lost when nobody listens yet or a queue is full; the hole shows in
the numbers and is filled by a replay. After a loss that cannot be filled the rank's cache counts as cleared: less is
known then than there is, never more. Backends follow their own engine with it, and `dynamo.frontend.select` those of
servers that it did not start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

import zmq
import zmq.asyncio

from dynamo.protocols.kv_events import AllBlocksCleared, EngineKvEvent
from dynamo.protocols.kv_translation import Translator
from dynamo.protocols.kv_wire import Drops, WireBatch, decode_batch

__all__ = ["Emit", "KvEventSource", "KvEventStream", "Timing"]

Emit: TypeAlias = "Callable[[list[EngineKvEvent]], Awaitable[None]]"

_END = (-1).to_bytes(8, "big", signed=True)
#: Messages that wait in a socket; beyond it they are dropped, and replayed later.
_QUEUED_MESSAGES = 10_000
_MAX_MESSAGE_BYTES = 64 << 20


class KvEventSource(NamedTuple):
    """Where one rank publishes: addresses to connect to."""

    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""


class Timing(NamedTuple):
    """How long to wait for a publisher."""

    quiet_seconds: float = 1.0
    """Silence after which the publisher is asked once whether something is missing."""
    replay_seconds: float = 2.0
    """Longest wait for the next message of a replay."""


class _Message(NamedTuple):
    number: int
    payload: bytes


class KvEventStream:
    """Reads one publisher; connected from the beginning, so that nothing is lost before :meth:`follow`.

    Raises:
        zmq.ZMQError: the endpoint cannot be connected to.
    """

    def __init__(self, context: zmq.asyncio.Context, source: KvEventSource, drops: Drops, timing: Timing) -> None:
        self._context = context
        self._source = source
        self._drops = drops
        self._timing = timing
        self._translator = Translator(drops)
        self._last_live = -1
        self._last_timestamp = 0.0
        self.next_number = 0
        """Number of the first message that has not been handed on."""
        self._socket = self._connect(zmq.SUB, source.endpoint)
        self._socket.setsockopt(zmq.SUBSCRIBE, source.topic.encode())

    def close(self) -> None:
        """Free the socket. :meth:`follow` must have ended. Idempotent."""
        self._socket.close(linger=0)

    async def follow(self, emit: Emit) -> None:
        """Hand on the events of each message in order, from the publisher's first. Runs until cancelled.

        Where messages are gone for good, `emit` gets an `AllBlocksCleared` alone.
        """
        asked = False
        while True:
            if await self._socket.poll(self._timing.quiet_seconds * 1000):
                message = self._parse(await self._socket.recv_multipart())
                if message is not None:
                    await self._live(message, emit)
                    asked = False
            elif not asked or self.next_number == 0:
                # The last message before a silence can be missing without a hole to show for it.
                asked = True
                await self._replay(emit)

    async def _live(self, message: _Message, emit: Emit) -> None:
        batch = decode_batch(message.payload, self._drops)
        newer = batch is not None and batch.timestamp > self._last_timestamp
        if message.number < self.next_number and (newer or message.number <= self._last_live):
            # A publisher never goes back: this is another one, that took the place of the first.
            self.next_number = 0
            self._last_timestamp = 0.0
            await emit([AllBlocksCleared()])
        if message.number > self.next_number:
            await self._replay(emit)
        self._last_live = message.number
        await self._accept(message, batch, emit)

    async def _accept(self, message: _Message, batch: WireBatch | None, emit: Emit) -> None:
        if message.number < self.next_number:
            return
        if message.number > self.next_number:
            self._drops.add("messages that the engine has no more", f"{self.next_number} to {message.number - 1}")
            await emit([AllBlocksCleared()])
        self.next_number = message.number + 1
        if batch is not None:
            self._last_timestamp = batch.timestamp
            await emit(self._translator.translate(batch.events))

    async def _replay(self, emit: Emit) -> None:
        """Fetch what the publisher still has; one answer drops what overflows its queue, so ask until nothing new."""
        before = -1
        while self._source.replay_endpoint is not None and before < self.next_number:
            before = self.next_number
            try:
                if await self._replay_once(self._source.replay_endpoint, emit):
                    return
            except zmq.ZMQError as error:
                self._drops.add("a replay endpoint that cannot be used", error)
                return

    async def _replay_once(self, endpoint: str, emit: Emit) -> bool:
        """One question; whether its answer had an end and no hole."""
        before = self.next_number
        with contextlib.closing(self._connect(zmq.DEALER, endpoint)) as socket:
            await socket.send_multipart([b"", before.to_bytes(8, "big")])
            while await socket.poll(self._timing.replay_seconds * 1000):
                frames = await socket.recv_multipart()
                if _END in frames[-2:]:
                    return True
                message = self._parse(frames)
                if message is None:
                    continue
                if message.number > self.next_number > before:
                    return False
                await self._accept(message, decode_batch(message.payload, self._drops), emit)
        return False

    def _parse(self, frames: list[bytes]) -> _Message | None:
        """The number and the payload are the last two frames, of a live message and of a replayed one."""
        if len(frames) < 2 or len(frames[-2]) != 8:
            self._drops.add("a message of another form", f"{len(frames)} frames")
            return None
        return _Message(int.from_bytes(frames[-2], "big"), frames[-1])

    def _connect(self, kind: int, endpoint: str) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, _QUEUED_MESSAGES)
            socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
            socket.connect(endpoint)
        except zmq.ZMQError:
            socket.close()
            raise
        return socket
