"""The conversation that is recorded: one service, and a client that meets every kind of message there is.

The same session is run to record a version (`tools.wire.record`) and, later, against what that version said
(`tests/wire`). What it does must therefore not depend on time or chance.
"""

from __future__ import annotations

import asyncio

import msgspec

from dynamo.errors import DynamoError, RateLimited
from dynamo.protocols.context import RequestContext
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import LLMEngineOutput, PreprocessedRequest, StopConditions, Usage, pack_token_ids
from dynamo.protocols.planes import PlaneServer, RequestPlane, StreamWriter
from dynamo.runtime.context import Context

__all__ = ["INSTANCE_ID", "SECRET", "SERVICES", "Reply", "ask_everything", "serve_everything"]

SECRET = b"recorded"
INSTANCE_ID = 7
TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
#: The first second of the year 2100.
DEADLINE_UNIX_SECONDS = 4_102_444_800.0
#: More than the asking side's window of 256: the rest needs credit.
MANY = 600
TIMEOUT_SECONDS = 20.0

_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(PreprocessedRequest).decode
#: What is asked for, in this order: the stream ids are 1, 2, ...
SERVICES = ("tokens", "many", "limited", "endless", "nothing", "stop", "tokens")


def serve_everything(server: PlaneServer) -> None:
    """Give `server` the endpoints of the session."""
    loop = asyncio.get_running_loop()

    def tokens(payload: bytes, _context: RequestContext, writer: StreamWriter) -> None:
        ids = _decode_request(payload).prompt().tolist()

        def step(number: int) -> None:
            if number < len(ids):
                writer.send(_encode(LLMEngineOutput([ids[number]], step=number)))
                loop.call_later(0.01, step, number + 1)  # a frame for each
            else:
                usage = Usage(len(ids), len(ids))
                writer.send(_encode(LLMEngineOutput(finish_reason="stop", usage=usage, step=number)))
                writer.end()

        step(0)

    def many(_payload: bytes, _context: RequestContext, writer: StreamWriter) -> None:
        for number in range(MANY):
            writer.send(_encode(number))
        writer.end()

    def limited(_payload: bytes, _context: RequestContext, writer: StreamWriter) -> None:
        writer.send(_encode(LLMEngineOutput([1])))
        error = RateLimited("too many requests", param="user", reason="rate_limit_exceeded", retry_after_seconds=3)
        writer.fail(error)

    def endless(_payload: bytes, context: RequestContext, writer: StreamWriter) -> None:
        writer.send(_encode(LLMEngineOutput([1])))
        context.on_cancel(writer.end)

    def stop(_payload: bytes, _context: RequestContext, writer: StreamWriter) -> None:
        writer.end()
        server.stop_accepting()

    for service in (tokens, many, limited, endless, stop):
        server.add_handler(f"worker.{service.__name__}", service)


class Reply:
    """Implements `ResponseSink`: what one request got."""

    def __init__(self) -> None:
        self.items: list[bytes] = []
        self.error: DynamoError | None = None
        self.began = asyncio.Event()
        self.ended = asyncio.Event()

    def on_items(self, items: list[bytes]) -> None:
        """See `ResponseSink`."""
        self.items += items
        self.began.set()

    def on_end(self) -> None:
        """See `ResponseSink`."""
        self.ended.set()

    def on_error(self, error: DynamoError) -> None:
        """See `ResponseSink`."""
        self.error = error
        self.ended.set()


async def ask_everything(plane: RequestPlane, address: str, quiet: asyncio.Event) -> list[Reply]:
    """Be the client: one reply per entry of `SERVICES`. Before the last ones `quiet` is waited for.

    Raises:
        asyncio.TimeoutError: an answer did not come.
    """
    replies: list[Reply] = []
    for number, service in enumerate(SERVICES):
        record = InstanceRecord("ns", "worker", service, INSTANCE_ID, {"tcp": address})
        reply = Reply()
        replies.append(reply)
        context = Context(f"request-{number}", deadline_unix_seconds=DEADLINE_UNIX_SECONDS, trace=TRACE)
        stream = plane.send(record, _payload(context.request_id), reply, context)
        if service == "endless":
            await asyncio.wait_for(reply.began.wait(), TIMEOUT_SECONDS)
            await asyncio.wait_for(quiet.wait(), TIMEOUT_SECONDS)
            stream.cancel()
        await asyncio.wait_for(reply.ended.wait(), TIMEOUT_SECONDS)
    return replies


def _payload(request_id: str) -> bytes:
    request = PreprocessedRequest(request_id, "m", pack_token_ids([11, 12, 13]), stop=StopConditions(max_tokens=3))
    return _encode(request)
