"""Real servers: started, killed, paused, wiped, and gone when their user is."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from dynamo.errors import ConfigError, DynamoError
from dynamo.testing.servers import EtcdServer, NatsServer, find_server, free_port

WAIT_SECONDS = 20


def make(kind, **options):
    try:
        return kind(**options)
    except ConfigError as error:
        pytest.skip(str(error))


def answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("kind", [EtcdServer, NatsServer])
def test_a_server_serves_at_its_port_and_leaves_nothing(kind):
    with make(kind) as server:
        assert answers(server.port)
        assert str(server.port) in server.url
        directory = server.directory
        server.kill()
        assert not server.running
        assert not answers(server.port)
        server.start()
        assert answers(server.port)
        with pytest.raises(ConfigError, match="runs"):
            server.wipe()
    assert not server.running
    assert not directory.exists()


def test_etcd_keeps_its_data_until_it_is_wiped(tmp_path):
    with make(EtcdServer, directory=tmp_path / "etcd") as etcd:

        def ask(path, **fields):
            request = urllib.request.Request(f"{etcd.endpoint}/v3/kv/{path}", json.dumps(fields).encode())
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as reply:
                return json.load(reply)

        ask("put", key="aw==", value="dg==")
        etcd.kill()
        etcd.start()
        assert ask("range", key="aw==")["kvs"][0]["value"] == "dg=="
        etcd.stop()
        etcd.wipe()
        etcd.start()
        assert "kvs" not in ask("range", key="aw==")
    assert etcd.log.stat().st_size > 0


def test_a_paused_server_is_silent_and_can_be_stopped():
    with make(NatsServer) as nats, socket.create_connection(("127.0.0.1", nats.port), timeout=WAIT_SECONDS) as first:
        assert first.recv(4) == b"INFO"
        nats.pause()
        with socket.create_connection(("127.0.0.1", nats.port), timeout=0.3) as second:
            with pytest.raises(TimeoutError):
                second.recv(4)
            nats.resume()
            second.settimeout(WAIT_SECONDS)
            assert second.recv(4) == b"INFO"
        nats.pause()


def test_a_server_that_cannot_start_shows_its_log():
    server = make(NatsServer, arguments=["--no-such-option"])
    with pytest.raises(DynamoError, match="no-such-option"):
        server.start()
    assert not server.running
    server.close()


def test_a_taken_port_that_was_asked_for_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = make(NatsServer, port=taken.getsockname()[1])
        with pytest.raises(DynamoError, match="address already in use"):
            server.start()
        server.close()


def test_servers_end_with_the_process_that_started_them(tmp_path):
    make(NatsServer).close()
    program = (
        "import pathlib, sys; from dynamo.testing.servers import NatsServer;"
        "server = NatsServer(pathlib.Path(sys.argv[1])); server.start();"
        "print(server.port, flush=True); sys.stdin.read()"
    )
    user = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with user:
        port = int(user.stdout.readline())
        assert answers(port)
        user.send_signal(signal.SIGKILL)
        wait_until(lambda: not answers(port))


def test_free_ports_are_outside_the_range_of_outgoing_connections():
    assert all(15000 <= free_port() < 32000 for _ in range(20))


def test_find_server_looks_where_it_is_told_first(tmp_path, monkeypatch):
    program = tmp_path / "etcd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("DYNAMO_TEST_SERVERS", str(tmp_path))
    assert find_server("etcd") == program


def test_a_missing_server_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # empty
    monkeypatch.delenv("DYNAMO_TEST_SERVERS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="etcd is not on this machine") as caught:
        find_server("etcd")
    assert "tools/servers/install.py etcd" in caught.value.hint
