"""``/v1/loras`` on a worker's system port: list, load and unload LoRA adapters while the worker runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import msgspec

from dynamo.errors import DynamoError, EngineError, InvalidRequest
from dynamo.protocols.lora import LORA_NAME_LIMIT, lora_id_of
from dynamo.runtime.http import Exchange, HttpServer
from dynamo.runtime.system_access import SystemAccess
from dynamo.runtime.tasks import Tasks
from dynamo.worker.loras import LoraAdapters

__all__ = ["LoraPages"]

logger = logging.getLogger(__name__)

_PATH = "/v1/loras"
_BODY_LIMIT_BYTES = 16 << 10
#: A change that takes longer is answered with 202 and goes on.
_ANSWER_SECONDS = 10.0


class _Source(msgspec.Struct):
    uri: str


class _LoadRequest(msgspec.Struct):
    lora_name: str
    source: _Source


class LoraPages:
    """The route handlers. All of them need access to the system port: names of adapters may be secret too."""

    def __init__(
        self, adapters: LoraAdapters, access: SystemAccess, *, answer_seconds: float = _ANSWER_SECONDS
    ) -> None:
        self._adapters = adapters
        self._access = access
        self._answer_seconds = answer_seconds
        self._tasks = Tasks()

    def install(self, server: HttpServer) -> None:
        """Serve the paths."""
        server.body_limits[_PATH] = _BODY_LIMIT_BYTES
        server.route("GET", _PATH, self.every)
        server.route("POST", _PATH, self.load)
        server.route("DELETE", f"{_PATH}/*", self.unload)

    def every(self, exchange: Exchange) -> None:
        """What is loaded."""
        self._access.check(exchange)
        loras = {name: lora_id_of(name) for name in self._adapters.names()}
        exchange.respond_json(200, {"status": "success", "loras": loras, "count": len(loras)})

    def load(self, exchange: Exchange) -> None:
        """Load one."""
        self._access.check(exchange)
        try:
            request = msgspec.json.decode(exchange.body, type=_LoadRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequest(
                f"the body is not what is taken here: {error}",
                hint='send {"lora_name": "NAME", "source": {"uri": "file:///DIRECTORY"}}',
            ) from error
        name = request.lora_name
        self._begin(exchange, self._adapters.load(name, request.source.uri), name, "loaded")

    def unload(self, exchange: Exchange) -> None:
        """Unload one."""
        self._access.check(exchange)
        self._begin(exchange, self._adapters.unload(exchange.params), exchange.params, "unloaded")

    async def close(self) -> None:
        """Stop what is being changed."""
        await self._tasks.cancel()

    def _begin(self, exchange: Exchange, change: Coroutine[Any, Any, None], name: str, verb: str) -> None:
        self._tasks.spawn(self._answer(exchange, change, name, verb))

    async def _answer(self, exchange: Exchange, change: Coroutine[Any, Any, None], name: str, verb: str) -> None:
        """Make the change and say how it went; after a while say that it goes on."""
        body = {"lora_name": name, "lora_id": lora_id_of(name)}

        def late() -> None:
            exchange.respond_json(202, {"status": "pending", "message": f"{name!r} is not {verb} yet", **body})

        timer = asyncio.get_running_loop().call_later(self._answer_seconds, late)
        try:
            await change
        except DynamoError as error:
            logger.warning("LoRA adapter %r is not %s: %s", name[:LORA_NAME_LIMIT], verb, error.message)
            exchange.respond_error(error)
        except Exception:
            logger.exception("LoRA adapter %r is not %s", name[:LORA_NAME_LIMIT], verb)
            exchange.respond_error(EngineError("internal error; the worker's log has the details"))
        else:
            exchange.respond_json(200, {"status": "success", "message": f"{name!r} is {verb}", **body})
        finally:
            timer.cancel()
