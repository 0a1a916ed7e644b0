"""The prefix cache of a vLLM engine as a `KvEventSource`: the engine adapter makes one and hands it to the worker host.

Ranks publish on ports of their own; each is followed by a task, and all put into one bounded queue. A consumer that is
too slow fills the queue, then ZeroMQ's, then messages are dropped there and replayed or reported as lost: memory stays
bounded. After a loss the rank's cache counts as cleared: the router then knows less than there is, never more.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Sequence

import zmq
import zmq.asyncio
from typing_extensions import Self

from dynamo.errors import ConfigError, EngineError
from dynamo.protocols.kv_events import EngineKvEvent, EngineKvEvents
from dynamo.protocols.kv_wire import Drops
from dynamo.runtime.kv_event_stream import KvEventSource, KvEventStream, Timing

__all__ = ["VllmKvEvents", "rank_endpoint"]

#: Engine steps that wait for the consumer.
_PENDING_BATCHES = 1024
_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:\[\]/]+):(?P<port>\d{1,5})\Z")


def rank_endpoint(endpoint: str, dp_rank: int) -> str:
    """Where to connect for the events of a rank, from the endpoint that vLLM's `KVEventsConfig` names.

    ``tcp://*:5557`` is a wildcard to bind to, and rank `r` of an engine binds port + r. Of other addresses vLLM tells
    the ranks apart only where "inproc" is part of the name, by a suffix.

    Raises:
        ConfigError: not such an endpoint, or the port is beyond 65535.
    """
    match = _TCP.match(endpoint)
    if match is None:
        if endpoint.startswith("ipc://") and len(endpoint) > len("ipc://") and (dp_rank == 0 or "inproc" in endpoint):
            return f"{endpoint}_dp{dp_rank}" if dp_rank else endpoint
        raise ConfigError(
            f"KV events endpoint {endpoint!r} of rank {dp_rank} is not usable",
            param="kv-events-config",
            hint="give tcp://*:PORT, or ipc://PATH for an engine with one rank",
        )
    port = int(match["port"]) + dp_rank
    if not 0 < port < 1 << 16:
        raise ConfigError(
            f"KV events port {port} of rank {dp_rank} does not exist",
            param="kv-events-config",
            hint="leave room above the port for one port per data-parallel rank",
        )
    host = "127.0.0.1" if match["host"] in ("*", "0.0.0.0") else match["host"]
    return f"tcp://{host}:{port}"


class VllmKvEvents:
    """Async iterator of what changes in the prefix caches of an engine, from its first step on.

    Follows `dp_ranks`; connects at the first step of the iteration, before or after the engine starts. With
    `replay_endpoint` nothing is missing as long as the engine keeps it (`buffer_steps` of its `KVEventsConfig`).

    Raises:
        ConfigError: an endpoint is not one that a subscriber can connect to.
    """

    def __init__(
        self,
        endpoint: str,
        replay_endpoint: str | None = None,
        *,
        topic: str = "",
        dp_ranks: Sequence[int] = (0,),
        pending_batches: int = _PENDING_BATCHES,
        timing: Timing | None = None,
    ) -> None:
        self._sources = {
            rank: KvEventSource(
                rank_endpoint(endpoint, rank), rank_endpoint(replay_endpoint, rank) if replay_endpoint else None, topic
            )
            for rank in dp_ranks
        }
        self._timing = timing or Timing()
        self._drops = Drops()
        self._pending: asyncio.Queue[EngineKvEvents | EngineError | None] = asyncio.Queue(pending_batches)
        self._tasks: list[asyncio.Task[None]] = []
        self._context: zmq.asyncio.Context | None = None
        self._closed = False

    @property
    def dropped(self) -> Counter[str]:
        """How many messages, events and holes were left out, by reason."""
        return self._drops.counts

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EngineKvEvents:
        """The next step of some rank.

        Raises:
            EngineError: a rank cannot be followed.
        """
        if self._closed:
            raise StopAsyncIteration
        if self._context is None:
            self._context = zmq.asyncio.Context()
            self._tasks = [asyncio.get_running_loop().create_task(self._follow(rank)) for rank in self._sources]
        item = await self._pending.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, EngineError):
            raise item
        return item

    async def close(self) -> None:
        """End the iteration and free the sockets. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._context is not None:
            self._context.destroy(linger=0)
        while not self._pending.empty():
            self._pending.get_nowait()
        self._pending.put_nowait(None)

    async def _follow(self, rank: int) -> None:
        assert self._context is not None
        source = self._sources[rank]

        async def emit(events: list[EngineKvEvent]) -> None:
            if events:
                await self._pending.put(EngineKvEvents(events, rank))

        try:
            with contextlib.closing(KvEventStream(self._context, source, self._drops, self._timing)) as stream:
                await stream.follow(emit)
        except zmq.ZMQError as error:
            failure = EngineError(f"KV events of rank {rank} cannot be read from {source.endpoint}: {error}")
            failure.__cause__ = error
            await self._pending.put(failure)
