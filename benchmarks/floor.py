"""The machine's scale: fixed Python, msgpack and socket loops.

Bars that are given in seconds are for the reference machine below; the ratios say how much faster this one is, and so
how to scale them. Nothing of ours is measured here.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import numpy as np

from benchmarks.harness.measure import alternate
from benchmarks.harness.rows import Options, Row

__all__ = ["run"]

REFERENCE = "2-core reference machine"
#: name: (unit, units in one of it, the reference machine's median: x86-64 virtual machine, CPython 3.11)
LOOPS = {
    "python loop": ("M iterations/s", 1e6, 12.5),
    "msgpack frame": ("k frames/s", 1e3, 350.0),
    "socket round trip": ("k round trips/s", 1e3, 66.0),
    "matrix times vector": ("GFLOP/s", 1e9, 38.0),
}


def run(options: Options) -> Iterator[Row]:
    """One row per loop."""
    with _echo() as connection:
        works = {
            "python loop": _python_loop,
            "msgpack frame": _msgpack_loop,
            "socket round trip": lambda: _socket_loop(connection),
            "matrix times vector": _matrix_loop,
        }
        results = alternate(works, 9 if options.quick else 51)
    for name, (unit, size, on_reference_machine) in LOOPS.items():
        sample = results[name].per_second * (1 / size)
        yield Row(
            name=name,
            value=sample.median,
            low=sample.low,
            high=sample.high,
            unit=unit,
            reference=REFERENCE,
            reference_value=on_reference_machine,
        )


def _python_loop() -> int:
    """Integer arithmetic, a dictionary and a call per iteration: what an event loop's handlers are made of."""
    iterations = 200_000
    counts: dict[int, int] = {}
    for index in range(iterations):
        slot = index & 63
        counts[slot] = counts.get(slot, 0) + 1
    return iterations


def _msgpack_loop() -> int:
    """Encode and decode the frame of an engine step with 16 streams."""
    frames = 5_000
    frame = [[index, [index * 7], None, {"step": index}] for index in range(16)]
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    for _ in range(frames):
        decode(encode(frame))
    return frames


def _matrix_loop() -> int:
    """Single-precision matrix times vector, which bounds decoding one stream."""
    width, times = 1_024, 200
    matrix = np.ones((width, width), np.float32)
    vector = np.ones(width, np.float32)
    for _ in range(times):
        matrix @ vector
    return times * 2 * width * width


def _socket_loop(connection: socket.socket) -> int:
    """Send 64 bytes and wait for them, over loopback."""
    trips = 1_000
    message = b"x" * 64
    for _ in range(trips):
        connection.sendall(message)
        connection.recv(64, socket.MSG_WAITALL)
    return trips


def _echo() -> socket.socket:
    """A TCP connection over loopback whose peer is a thread that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = listener.accept()
        with listener, peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := peer.recv(64):
                peer.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    connection = socket.create_connection(listener.getsockname())
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
