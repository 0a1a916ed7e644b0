"""One HTTP GET to a process of this machine, for readiness. httpx would cost a fifth of a second to import."""

from __future__ import annotations

import asyncio

__all__ = ["http_get"]

_MAX_BYTES = 1 << 20


async def http_get(host: str, port: int, path: str, *, timeout_seconds: float = 2.0) -> tuple[int, bytes]:
    """Status and body of ``http://host:port/path``; status 0 when nobody answers in time or not in HTTP."""
    try:
        answer = await asyncio.wait_for(_exchange(host, port, path), timeout_seconds)
        status_line, _, rest = answer.partition(b"\r\n")
        return int(status_line.split()[1]), rest.partition(b"\r\n\r\n")[2]
    except (OSError, asyncio.TimeoutError, ValueError, IndexError):
        return 0, b""


async def _exchange(host: str, port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        # HTTP/1.0 rules out chunked bodies: what follows the headers is the body.
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        answer = b""
        while len(answer) < _MAX_BYTES and (chunk := await reader.read(65536)):
            answer += chunk
        return answer
    finally:
        writer.close()
