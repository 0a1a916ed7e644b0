"""The scheduler's Unix socket: JSON lines, for ``dynamo serve --status`` and for a planner in another process.

Request ``{"method": "scale", "params": {"component": "worker", "replicas": 2}}``, answer ``{"result": ...}`` or
``{"error": ...}`` with the map of `DynamoError.to_wire`. The socket is the user's own (mode 0600 in a 0700 directory).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from dynamo.errors import CannotConnect, ConfigError, Disconnected, DynamoError, InvalidRequest, error_from_wire
from dynamo.protocols.scheduling import ComponentStatus, Scheduler

__all__ = ["SOCKET_NAME", "ControlClient", "ControlServer"]

SOCKET_NAME = "scheduler.sock"
#: Longest path of a Unix socket: 108 bytes on Linux, 104 on macOS, with the final zero.
_MAX_SOCKET_PATH_BYTES = 103


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    params: dict[str, Any] = {}


class _ScaleParams(msgspec.Struct, forbid_unknown_fields=True):
    component: str
    replicas: int
    expected_generation: int | None = None


class _RestartParams(msgspec.Struct, forbid_unknown_fields=True):
    component: str


class ControlServer:
    """Answers for one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._path: Path | None = None

    async def start(self, state_dir: Path) -> None:
        """Listen in `state_dir`, which this process must own: a socket that lies there is taken over.

        Raises:
            ConfigError: the directory's path is too long for a socket.
        """
        path = state_dir / SOCKET_NAME
        if len(str(path).encode()) > _MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"{state_dir} is too long a path for a Unix socket", hint="choose a shorter one with --state-dir"
            )
        self._server = await asyncio.start_unix_server(self._accept, path)
        path.chmod(0o600)
        self._path = path

    async def close(self) -> None:
        """Stop listening and take the socket away. Idempotent."""
        if self._server is None or self._path is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        self._path.unlink(missing_ok=True)
        self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while line := await reader.readline():
                writer.write(await self._answer(line) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):
            # The client left, sent a line beyond the limit, or we are closing: in each case there is nobody to tell.
            return
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        try:
            return msgspec.json.encode({"result": await self._call(msgspec.json.decode(line, type=_Request))})
        except msgspec.MsgspecError as error:
            return msgspec.json.encode({"error": InvalidRequest(f"not a control request: {error}").to_wire()})
        except DynamoError as error:
            return msgspec.json.encode({"error": error.to_wire()})

    async def _call(self, request: _Request) -> object:
        if request.method == "status":
            return await self._scheduler.status()
        if request.method == "scale":
            scale = msgspec.convert(request.params, _ScaleParams)
            return await self._scheduler.scale(
                scale.component, scale.replicas, expected_generation=scale.expected_generation
            )
        if request.method == "restart":
            await self._scheduler.restart(msgspec.convert(request.params, _RestartParams).component)
            return None
        raise InvalidRequest(f"no control method {request.method!r}", hint="there are: status, scale, restart")


class ControlClient:
    """Calls the scheduler that runs in `state_dir`; each call is one connection."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / SOCKET_NAME

    async def status(self) -> Sequence[ComponentStatus]:
        """See `Scheduler.status`. Raises CannotConnect when nothing runs there."""
        return msgspec.convert(await self._call("status", {}), list[ComponentStatus])

    async def scale(self, component: str, replicas: int, *, expected_generation: int | None = None) -> ComponentStatus:
        """See `Scheduler.scale`. Raises CannotConnect when nothing runs there."""
        params = {"component": component, "replicas": replicas, "expected_generation": expected_generation}
        return msgspec.convert(await self._call("scale", params), ComponentStatus)

    async def restart(self, component: str) -> None:
        """See `Scheduler.restart`. Raises CannotConnect when nothing runs there."""
        await self._call("restart", {"component": component})

    async def _call(self, method: str, params: dict[str, Any]) -> Any:
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise CannotConnect(f"no scheduler answers at {self._path}", hint="is `dynamo serve` running?") from error
        try:
            writer.write(msgspec.json.encode(_Request(method, params)) + b"\n")
            await writer.drain()
            line = await reader.readline()
        except ConnectionError as error:
            raise Disconnected(f"the scheduler at {self._path} went away") from error
        finally:
            writer.close()
        if not line:
            raise Disconnected(f"the scheduler at {self._path} went away")
        answer = msgspec.json.decode(line)
        if "error" in answer:
            raise error_from_wire(answer["error"])
        return answer.get("result")
