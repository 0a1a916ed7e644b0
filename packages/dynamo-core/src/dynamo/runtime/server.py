"""The serving side in iterator form: turns an async generator of items into a plane handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import msgspec

from dynamo.errors import DynamoError, EngineError, EngineShutdown, InvalidRequest
from dynamo.protocols.context import RequestContext
from dynamo.protocols.planes import Handler, StreamWriter

__all__ = ["closing", "iterator_handler"]

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode


def iterator_handler(serve: Callable[[Any, RequestContext], AsyncIterator[Any]], request_type: Any = Any) -> Handler:
    """A plane handler of ``serve(request, context)``, which yields msgpack-able items.

    The payload is decoded as `request_type`. The handler waits when the asking side grants no credit. After
    ``context.cancel()`` the generator should end by itself; if it does not it is closed within a second.
    """
    decode = msgspec.msgpack.Decoder(request_type).decode
    tasks: set[asyncio.Task[None]] = set()

    def handle(payload: bytes, context: RequestContext, writer: StreamWriter) -> None:
        try:
            request = decode(payload)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"the request is not what this endpoint takes: {error}") from error
        task = asyncio.get_running_loop().create_task(_pump(serve(request, context), context, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        context.on_cancel(lambda: _cancel_soon(task))

    return handle


class closing:  # noqa: N801 - like the standard library's, which takes nothing but generators
    """Close `items` at the end, if it is a generator: what it holds is freed now, not when it is collected.

    A class, because there are two per request: one made of a generator costs a tenth of what a request costs here.
    """

    __slots__ = ("_items",)

    def __init__(self, items: AsyncIterator[Any]) -> None:
        self._items = items

    async def __aenter__(self) -> None:
        """Nothing to open."""

    async def __aexit__(self, *_: object) -> None:
        if isinstance(self._items, AsyncGenerator):
            await self._items.aclose()


#: A cancelled generator gets this long to end by itself, with its last item.
_CANCEL_GRACE_SECONDS = 1.0


def _cancel_soon(task: asyncio.Task[None]) -> None:
    if not task.done():
        asyncio.get_running_loop().call_later(_CANCEL_GRACE_SECONDS, task.cancel)


async def _pump(items: AsyncIterator[Any], context: RequestContext, writer: StreamWriter) -> None:
    try:
        async with closing(items):
            async for item in items:
                writer.send(_encode(item))
                if not writer.writable:
                    await _writable(writer)
        writer.end()
    except DynamoError as error:
        writer.fail(error)
    except asyncio.CancelledError:
        if context.cancelled:
            writer.end()
        else:
            writer.fail(EngineShutdown(f"request {context.request_id} was given up by the process that served it"))
    except Exception:
        logger.exception("request %s failed", context.request_id, extra={"request_id": context.request_id})
        writer.fail(EngineError("internal error; the worker's log has the details"))


async def _writable(writer: StreamWriter) -> None:
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    writer.on_writable(wake)
    await waiter
