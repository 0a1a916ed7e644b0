"""Plays one side of a recorded conversation to a real process of today.

The bytes are the recorded ones, except for one thing that no recording can know: the proof of the secret, which is
made for the nonce that today's side has sent.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

from tools.wire.session import SECRET, TIMEOUT_SECONDS
from tools.wire.transcript import HEADER_BYTES, KINDS, Line, Progress, Side, messages_of

__all__ = ["Player", "covers"]


class Player:
    """The recorded `side` of `lines`; what the other one says now is in `heard`."""

    def __init__(self, side: Side, lines: list[Line]) -> None:
        self._side = side
        self._lines = lines
        self._nonces: dict[str, bytes] = {}
        self._changed = asyncio.Event()
        self.heard = Progress()
        self.expected = Progress()
        """What the other side said when this was recorded, as far as it has been played."""
        self.hellos: dict[str, dict[str, Any]] = {}
        """Maps of the handshake that today's side has sent, by kind."""

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """To the end, waiting for each thing that the other side said before the next frame went.

        Raises:
            AssertionError: it does not say it.
        """
        listening = asyncio.ensure_future(self._listen(reader))
        try:
            for line in self._lines:
                if line.sender == self._side:
                    writer.write(self._sign(line))
                else:
                    self.expected.take(messages_of(line.data))
                    await self._until_heard(line, listening)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            writer.close()

    async def _until_heard(self, line: Line, listening: asyncio.Future[None]) -> None:
        async def heard() -> None:
            while not self.heard.covers(self.expected):
                self._changed.clear()
                await self._changed.wait()

        waiting = asyncio.ensure_future(heard())
        await asyncio.wait({waiting, listening}, timeout=TIMEOUT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            missing = ", ".join(self.heard.missing(self.expected))
            raise AssertionError(f"the other side does not answer {line.says!r}; missing: {missing}")

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while header := await reader.read(HEADER_BYTES):
            header += await reader.readexactly(HEADER_BYTES - len(header))
            messages = messages_of(header + await reader.readexactly(int.from_bytes(header, "little")))
            for message in messages:
                if KINDS[message[0]] in ("HELLO", "READY"):
                    self._greet(KINDS[message[0]], message[1])
            self.heard.take(messages)
            self._changed.set()

    def _greet(self, kind: str, fields: dict[str, Any]) -> None:
        other = "server" if self._side == "client" else "client"
        self.hellos[kind] = fields
        if "nonce" in fields:
            self._nonces[other] = fields["nonce"]
        if "mac" in fields:
            assert fields["mac"] == self._mac(other), "the other side does not prove that it knows the secret"

    def _sign(self, line: Line) -> bytes:
        """The frame of `line` with a proof for today's nonce in the place of the recorded one."""
        frame = line.data
        for message in messages_of(frame):
            if KINDS[message[0]] in ("HELLO", "READY"):
                self._nonces.setdefault(self._side, message[1].get("nonce", b""))
                if "mac" in message[1]:
                    frame = frame.replace(message[1]["mac"], self._mac(self._side))
        return frame

    def _mac(self, side: Side) -> bytes:
        text = side.encode() + self._nonces["server"] + self._nonces["client"]
        return hmac.digest(SECRET, text, "sha256")


def covers(new: object, old: object) -> bool:
    """Whether a peer that knows the fields of `old`, and ignores others, reads the same out of `new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(key in new and covers(new[key], value) for key, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(covers, new, old))
    return new == old
