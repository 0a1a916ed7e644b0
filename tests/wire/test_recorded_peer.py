"""A peer of an earlier minor version, as it was recorded, meets this one over a real socket (DESIGN 4.4)."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from dynamo.errors import Draining, DynamoError, InvalidRequest, RateLimited
from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.request_plane import create_request_plane
from dynamo.runtime.request_plane.frames import PROTOCOL_VERSION
from tests.wire.player import Player, covers
from tools.wire.record import RECORDINGS, main, record_session
from tools.wire.session import INSTANCE_ID, SECRET, SERVICES, ask_everything, serve_everything
from tools.wire.transcript import HEADER_BYTES, KINDS, Line, Progress, messages_of, read_lines, write_lines

VERSIONS = sorted(path.name for path in RECORDINGS.iterdir())
TIMEOUT = 60.0
#: By service, how its request ends.
ENDINGS: dict[str, type[DynamoError]] = {"limited": RateLimited, "nothing": InvalidRequest}


@pytest.fixture(params=VERSIONS)
def recorded(request) -> list[Line]:
    """What a version said."""
    return read_lines(RECORDINGS / request.param / "session.jsonl")


def said(lines: list[Line], sender: str) -> Progress:
    progress = Progress()
    for line in lines:
        if line.sender == sender:
            progress.take(messages_of(line.data))
    return progress


def test_the_previous_minor_has_been_recorded():
    major, minor = PROTOCOL_VERSION
    wanted = {f"{major}.{earlier}" for earlier in range(minor)}
    assert wanted <= set(VERSIONS), "record it on its last commit: python -m tools.wire.record"


def test_a_recording_has_every_kind_of_message(recorded):
    text = "\n".join(line.says for line in recorded)
    for kind in ("HELLO", "READY", "OPEN", "CANCEL", "CREDIT", "ITEMS", "END", "FAIL", "PING", "PONG", "GOAWAY"):
        assert kind in text


async def test_a_recorded_client_is_served(recorded):
    plane = create_request_plane("tcp", PlaneOptions(secret=SECRET))
    server = await plane.serve(INSTANCE_ID)
    serve_everything(server)
    try:
        host, _, port = server.transports["tcp"].rpartition(":")
        player = Player("client", recorded)
        await asyncio.wait_for(player.play(*await asyncio.open_connection(host, int(port))), TIMEOUT)
    finally:
        await plane.close()
    expected = said(recorded, "server")
    assert player.heard.items == expected.items
    assert player.heard.endings.keys() == expected.endings.keys()
    for stream, error in expected.endings.items():
        assert covers(player.heard.endings[stream], error), stream
    assert player.hellos["HELLO"]["version"] == list(PROTOCOL_VERSION)


async def test_a_recorded_proof_of_the_secret_is_worth_nothing_in_another_connection(recorded):
    plane = create_request_plane("tcp", PlaneOptions(secret=SECRET))
    server = await plane.serve(INSTANCE_ID)
    try:
        host, _, port = server.transports["tcp"].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"".join(line.data for line in recorded if line.sender == "client"))
        answers = await asyncio.wait_for(reader.read(), TIMEOUT)
        writer.close()
    finally:
        await plane.close()
    length = int.from_bytes(answers[:HEADER_BYTES], "little")
    refusal = messages_of(answers[HEADER_BYTES + length :])
    assert [KINDS[message[0]] for message in refusal] == ["REFUSE"]
    assert "plane secret" in refusal[0][1]["message"]


async def test_a_recorded_server_is_understood(recorded):
    player = Player("server", recorded)
    played: list[asyncio.Task[None]] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        played.append(asyncio.ensure_future(player.play(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    plane = create_request_plane("tcp", PlaneOptions(secret=SECRET))
    quiet = asyncio.Event()
    quiet.set()
    try:
        replies = await asyncio.wait_for(ask_everything(plane, f"127.0.0.1:{port}", quiet), TIMEOUT)
        await asyncio.wait_for(asyncio.gather(*played), TIMEOUT)
    finally:
        await plane.close()
        listener.close()
    assert len(played) == 1
    expected = said(recorded, "server")
    for number, (service, reply) in enumerate(zip(SERVICES, replies, strict=True), 1):
        assert reply.items == expected.items.get(number, []), service
        wanted = Draining if number == len(SERVICES) else ENDINGS.get(service, type(None))
        assert type(reply.error) is wanted, service
    limited = replies[SERVICES.index("limited")].error
    assert limited is not None
    assert (limited.param, limited.reason, limited.retry_after_seconds) == ("user", "rate_limit_exceeded", 3)
    # What an old server reads of today's client: the elements and fields that it knows.
    asked = said(recorded, "client")
    assert player.heard.credit == asked.credit
    for stream, (endpoint, payload, fields, window) in asked.opened.items():
        new_endpoint, new_payload, new_fields, new_window = player.heard.opened[stream][:4]
        assert (new_endpoint, new_window) == (endpoint, window)
        assert covers(new_fields, fields)
        assert covers(msgspec.msgpack.decode(new_payload), msgspec.msgpack.decode(payload))
    assert player.hellos["HELLO"]["version"][0] == PROTOCOL_VERSION[0]


async def test_recording_this_version_gives_a_session_that_this_version_plays(tmp_path):
    lines = await record_session()
    write_lines(tmp_path / "session.jsonl", lines)
    assert read_lines(tmp_path / "session.jsonl") == lines
    await test_a_recorded_client_is_served(lines)


def test_what_has_been_recorded_is_not_written_over(capsys, tmp_path):
    (tmp_path / ".".join(map(str, PROTOCOL_VERSION))).mkdir()
    assert main(tmp_path) == 1
    assert "has not grown" in capsys.readouterr().err
