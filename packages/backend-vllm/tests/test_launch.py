from __future__ import annotations

from pathlib import Path

from dynamo.vllm.launch import directory_for_sockets


def test_sockets_have_names_that_fit():
    assert directory_for_sockets(Path("/var/tmp")) == Path("/var/tmp")
    assert directory_for_sockets(Path("/", "x" * 60)) == Path("/tmp")
    # The longest name of a directory of ours and of a socket in it.
    longest = next(size for size in range(100, 0, -1) if directory_for_sockets(Path("/", "x" * size)) != Path("/tmp"))
    name = f"/{'x' * longest}/dynamo-vllm-{4 << 20}-{'r' * 8}/{'u' * 36}"
    assert len(name) <= 107
