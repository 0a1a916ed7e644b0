"""Records how this version talks, for later versions to be tested against: ``python -m tools.wire.record``.

Run it on the last commit before the minor version of the request plane's protocol grows, and commit what it writes to
``tests/wire/recorded/MAJOR.MINOR``: the bytes of one session of the tcp plane in both directions, and one of each other
message. What has been recorded is never written over.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.request_plane import create_request_plane
from dynamo.runtime.request_plane.frames import PROTOCOL_VERSION
from dynamo.runtime.request_plane.nats_transport import Envelope
from tools.wire.messages import CHANNEL, FORMATS, SAMPLES, SEALED, Recorded, sealed_name
from tools.wire.session import INSTANCE_ID, SECRET, ask_everything, serve_everything
from tools.wire.transcript import HEADER_BYTES, KINDS, Line, Side, messages_of, write_lines

__all__ = ["RECORDINGS", "main", "record_messages", "record_session"]

RECORDINGS = Path(__file__).parents[2] / "tests" / "wire" / "recorded"
#: Short, so that the recording has pings.
_KEEPALIVE_SECONDS = 0.1


class _Tap:
    """Listens in between: passes frames on and keeps them."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.lines: list[Line] = []
        self.pinged = asyncio.Event()
        """Both sides have answered a ping."""
        self._answered: set[Side] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def listen(self) -> str:
        """Where clients come."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def close(self) -> None:
        """Wait for the end of what was passed on."""
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._tasks.append(asyncio.ensure_future(self._pass_on("client", reader, far_writer)))
        self._tasks.append(asyncio.ensure_future(self._pass_on("server", far_reader, writer)))

    async def _pass_on(self, sender: Side, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while True:
                header = await source.readexactly(HEADER_BYTES)
                frame = header + await source.readexactly(int.from_bytes(header, "little"))
                self.lines.append(Line.of(sender, frame))
                if any(KINDS[message[0]] == "PONG" for message in messages_of(frame)):
                    self._answered.add(sender)
                if len(self._answered) == 2:
                    self.pinged.set()
                target.write(frame)
        except asyncio.IncompleteReadError:
            target.close()


async def record_session() -> list[Line]:
    """One session of the tcp plane, from the first byte to the last."""
    options = PlaneOptions(secret=SECRET, keepalive_seconds=_KEEPALIVE_SECONDS)
    serving, asking = create_request_plane("tcp", options), create_request_plane("tcp", options)
    server = await serving.serve(INSTANCE_ID)
    serve_everything(server)
    tap = _Tap(server.transports["tcp"])
    try:
        await ask_everything(asking, await tap.listen(), tap.pinged)
    finally:
        await asking.close()
        await serving.close()
        await tap.close()
    return tap.lines


def record_messages() -> list[Recorded]:
    """One of each other message."""
    envelope = Envelope(SECRET, CHANNEL, asking=True)
    return [
        Recorded(type(value).__name__, form, FORMATS[form].encode(value).hex(), msgspec.to_builtins(value))
        for value, form in SAMPLES
    ] + [
        Recorded(sealed_name(kind), "nats", envelope.seal(kind, number, data).hex(), [kind, number, data.hex()])
        for kind, number, data in SEALED
    ]


def main(recordings: Path = RECORDINGS) -> int:
    """Write the recordings of this version; 1 if there are some."""
    folder = recordings / ".".join(map(str, PROTOCOL_VERSION))
    if folder.exists():
        print(f"{folder} exists: the protocol version in request_plane/frames.py has not grown", file=sys.stderr)
        return 1
    lines = asyncio.run(record_session())
    folder.mkdir(parents=True)
    write_lines(folder / "session.jsonl", lines)
    write_lines(folder / "messages.jsonl", record_messages())
    print(f"wrote {len(lines)} frames to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
