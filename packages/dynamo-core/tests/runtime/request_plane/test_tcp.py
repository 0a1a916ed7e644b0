"""The tcp request plane: addresses, Unix sockets, hostile and silent peers. What all planes do is in test_streams."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from dynamo.errors import CannotConnect, ConfigError, Disconnected
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.client import stream_items
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane import create_request_plane
from dynamo.runtime.request_plane.frames import encode_frames
from dynamo.runtime.server import iterator_handler

TIMEOUT = 10.0


@pytest.fixture(params=["tcp"])
def carrier(request):
    """Only this plane."""
    return request.param


async def count(request, context):
    for number in range(request):
        yield number


async def test_unix_sockets_serve_the_same(make_pair, tmp_path):
    pair = await make_pair(host="unix", state_directory=tmp_path)
    pair.serve(iterator_handler(count, int))
    assert [i async for i in stream_items(pair.asking, pair.record, b"\x05", Context("r"), int)] == [0, 1, 2, 3, 4]
    await pair.close()
    assert list(tmp_path.iterdir()) == []


async def test_nobody_listening_is_cannot_connect(pair):
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {"tcp": f"127.0.0.1:{_free_port()}"})
    sink, _ = pair.send()
    await sink.wait()
    assert isinstance(sink.error, CannotConnect)


async def test_an_open_address_needs_a_secret():
    plane = create_request_plane("tcp", PlaneOptions(host="0.0.0.0"))
    with pytest.raises(ConfigError, match="no plane secret") as caught:
        await plane.serve(1)
    assert "--insecure-planes" in str(caught.value.hint)


async def test_a_taken_port_names_the_flag():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        plane = create_request_plane("tcp", PlaneOptions(port=taken.getsockname()[1]))
        with pytest.raises(CannotConnect) as caught:
            await plane.serve(1)
    assert "--tcp-port" in str(caught.value.hint)


HELLO_WITHOUT_NONCE = encode_frames([(0, {"version": [1, 0]})], 1 << 20)
OTHER_MAJOR = encode_frames([(0, {"version": [9, 0], "nonce": b"0" * 16})], 1 << 20)


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "frame of"),
        (b"\xff\xff\xff\xff", "frame of 4294967295 bytes"),
        (b"\x03\x00\x00\x00\xc1\xc1\xc1", "malformed frame"),
        (b"\x01\x00\x00\x00\x05", "malformed frame"),
        (encode_frames([()], 1 << 20), "malformed message"),
        (encode_frames([(3, 1, "worker.generate", b"", {}, 1)], 1 << 20), "did not start with a handshake"),
        (HELLO_WITHOUT_NONCE, "no valid nonce"),
        (OTHER_MAJOR, "protocol [9, 0]"),
        (b"\x01\x10\x00\x00" + b"\x00" * 4097, "frame of 4097 bytes"),
    ],
)
async def test_garbage_drops_the_peer_with_a_logged_reason_and_spares_others(pair, caplog, garbage, reason):
    pair.serve(iterator_handler(count, int))
    reader, writer = await asyncio.open_connection(*pair.record.transports["tcp"].split(":"))
    with caplog.at_level(logging.WARNING, logger="dynamo.runtime.request_plane"):
        writer.write(garbage)
        await asyncio.wait_for(reader.read(), TIMEOUT)
    writer.close()
    assert reason in caplog.text
    sink, _ = pair.send(b"\x04")
    await sink.wait()
    assert len(sink.items) == 4


async def test_a_peer_that_never_greets_is_dropped(make_pair, caplog):
    pair = await make_pair(connect_timeout_seconds=0.05)
    reader, writer = await asyncio.open_connection(*pair.record.transports["tcp"].split(":"))
    with caplog.at_level(logging.WARNING):
        while await asyncio.wait_for(reader.read(4096), TIMEOUT):
            pass
    writer.close()
    assert "no handshake" in caplog.text


async def test_a_silent_server_is_lost_to_its_clients(make_pair):
    """A process that hangs accepts the connection and never answers a ping."""
    greeted = asyncio.Event()
    silent = []

    async def hang(reader, writer):
        silent.append(writer)
        writer.write(encode_frames([(0, {"version": [1, 0], "nonce": b"0" * 16, "auth": False})], 1 << 20))
        await reader.read(4096)
        writer.write(encode_frames([(1, {})], 1 << 20))
        greeted.set()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pair = await make_pair(keepalive_seconds=0.02)
    pair.record = InstanceRecord("ns", "w", "g", 1, {"tcp": f"127.0.0.1:{port}"})
    sink, _ = pair.send()
    await sink.wait()
    assert greeted.is_set()
    assert isinstance(sink.error, Disconnected)
    assert "silent" in sink.error.message
    for writer in silent:
        writer.close()
    server.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize(
    "address",
    ["nonsense", ":80", "host:", "127.0.0.1:65536", "127.0.0.1:²", f"{'a' * 64}.example:80", "a..b:80", "unix:a\0b"],
)
async def test_an_address_that_is_none_fails_the_stream(pair, address):
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {"tcp": address})
    sink, _ = pair.send()
    await sink.wait()
    assert isinstance(sink.error, CannotConnect)
