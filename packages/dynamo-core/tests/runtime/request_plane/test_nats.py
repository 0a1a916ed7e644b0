"""The request plane over a real NATS server: large frames, forgers, lost peers, outages and credentials."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys

import nats
import pytest

from dynamo.config.loading import load_settings
from dynamo.errors import CannotConnect, ConfigError, Disconnected, PluginError
from dynamo.protocols.broker import BrokerOptions
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane import create_request_plane
from dynamo.runtime.request_plane.nats_transport import CLOSE, DATA, DIAL, REFUSE, Envelope
from dynamo.runtime.server import iterator_handler
from dynamo.runtime.settings import RuntimeSettings
from dynamo.testing.servers import NatsServer

TIMEOUT = 20.0


@pytest.fixture(params=["nats"])
def carrier(request):
    """Only this plane."""
    return request.param


@pytest.fixture
async def outsider(nats_server):
    """A plain client of the same NATS server."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


class Held:
    """A handler that sends one item, and then one for each `release`; knows whether it was cancelled."""

    def __init__(self):
        self.releases = asyncio.Queue()
        self.cancelled = asyncio.Event()

    async def serve(self, request, context):
        context.on_cancel(self.cancelled.set)
        yield "first"
        while await self.releases.get():
            yield "more"

    async def wait_cancelled(self):
        await asyncio.wait_for(self.cancelled.wait(), TIMEOUT)


async def echo(request, context):
    yield request


def connections(pair):
    return len(pair.server.connections)


async def spy(outsider, pair):
    """Everything that travels in the pair's namespace: a queue of messages."""
    prefix = ".".join(pair.record.transports["nats"].split(".")[:2])
    seen = asyncio.Queue()

    async def take(message):
        seen.put_nowait(message)

    await outsider.subscribe(f"{prefix}.>", cb=take)
    for _ in range(2):  # the first ping may overtake the subscription
        await outsider.flush()
    return seen


async def test_the_instance_is_announced_by_its_subject(pair):
    assert pair.record.transports["nats"].startswith("dyn.")
    assert pair.record.transports["nats"].endswith(".instance.00000000000007")


@pytest.mark.parametrize("size", [(1 << 20) - 26, (1 << 20) - 25, 1 << 20, 5_000_000])
async def test_payloads_above_the_message_limit_of_nats_arrive_whole(pair, size):
    pair.serve(iterator_handler(echo, bytes))
    payload = b"\xc6" + size.to_bytes(4, "big") + bytes(range(250)) * (size // 250) + bytes(size % 250)
    sink, _ = pair.send(payload)
    await sink.wait()
    assert (sink.error, sink.items) == (None, [payload])


async def test_a_frame_above_our_own_limit_drops_the_connection_only(make_pair, caplog):
    pair = await make_pair(asking={"max_frame_bytes": 8 << 20}, max_frame_bytes=2 << 20)
    pair.serve(iterator_handler(echo, bytes))
    sink, _ = pair.send(b"\xc6" + (3_000_000).to_bytes(4, "big") + bytes(3_000_000))
    await sink.wait()
    assert isinstance(sink.error, Disconnected)
    assert "the limit is 2097152" in caplog.text
    again, _ = pair.send(b"\xc4\x01x")
    await again.wait()
    assert again.items == [b"\xc4\x01x"]


async def test_nobody_at_the_subject_is_known_at_once(make_pair):
    pair = await make_pair(connect_timeout_seconds=3600.0)
    pair.record = InstanceRecord("ns", "worker", "generate", 9, {"nats": "dyn.nobody.instance.9"})
    sink, _ = pair.send()
    await sink.wait()
    assert isinstance(sink.error, CannotConnect)
    assert "nobody is at dyn.nobody.instance.9" in sink.error.message


@pytest.mark.parametrize("subject", ["dyn.>", "dyn.*", "a b", "a\r\nPUB x 0\r\n", "", "a..b", "ä"])
async def test_a_subject_that_could_mean_others_is_refused(pair, subject):
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {"nats": subject})
    sink, _ = pair.send()
    await sink.wait()
    assert isinstance(sink.error, CannotConnect)
    assert "is not a subject" in sink.error.message


@pytest.mark.parametrize("secret", [b"", b"s3cret"])
async def test_garbage_on_the_subject_of_an_instance_spares_others(make_pair, outsider, secret):
    pair = await make_pair(secret=secret)
    held = Held()
    pair.serve(iterator_handler(held.serve))
    sink, _ = pair.send(b"\xc0")
    await sink.begin()
    subject = pair.record.transports["nats"]
    inbox = outsider.new_inbox()
    answers = await outsider.subscribe(inbox)
    dial = Envelope(b"", "c", asking=True).seal(DIAL, 0)
    for garbage in (b"", b"\x00", b"\xff" * 9, b"\x01" + bytes(8) + b"x" * 100, bytes(100_000), dial[:-1]):
        await outsider.publish(f"{subject}.c", garbage, reply=inbox)
        await outsider.publish(f"{subject}.c", garbage)
    await outsider.publish(f"{subject}.c", dial, reply="not.*.a.>")
    answer = await answers.next_msg(TIMEOUT)
    assert answer.data[0] & 0x7F == REFUSE
    held.releases.put_nowait(True)
    held.releases.put_nowait(False)
    await sink.wait()
    assert (sink.items, sink.error) == ([b"\xa5first", b"\xa4more"], None)
    assert connections(pair) == 1


async def test_garbage_within_a_connection_drops_that_peer_with_a_logged_reason(make_pair, outsider, caplog):
    pair = await make_pair()
    dialled = asyncio.Event()

    async def take(message):
        dialled.set()

    inbox = outsider.new_inbox()
    await outsider.subscribe(inbox, cb=take)
    subject = f"{pair.record.transports['nats']}.c"
    envelope = Envelope(b"", "c", asking=True)
    await outsider.publish(subject, envelope.seal(DIAL, 0), reply=inbox)
    await asyncio.wait_for(dialled.wait(), TIMEOUT)
    with caplog.at_level(logging.WARNING):
        await outsider.publish(subject, envelope.seal(DATA, 1, b"GET / HTTP/1.1\r\n\r\n"), reply=inbox)
        pair.serve(iterator_handler(echo))
        sink, _ = pair.send(b"\x01")
        await sink.wait()
    assert sink.items == [b"\x01"]
    assert "frame of" in caplog.text
    assert connections(pair) == 1


async def test_with_a_secret_nobody_joins_in_after_the_handshake(pair, outsider, caplog):
    held = Held()
    pair.serve(iterator_handler(held.serve))
    seen = await spy(outsider, pair)
    sink, _ = pair.send(b"\xc0")
    await sink.begin()
    recorded = [seen.get_nowait() for _ in range(seen.qsize())]
    assert len(recorded) > 3
    with caplog.at_level(logging.WARNING):
        for message in recorded:
            channel = message.subject.rpartition(".")[2]
            for number in range(20):
                for kind in (DATA, CLOSE):
                    forged = Envelope(b"", channel, asking=True).seal(kind, number, b"evil")
                    await outsider.publish(message.subject, forged)
            await outsider.publish(message.subject, message.data, reply=message.reply)
        await outsider.flush()
        held.releases.put_nowait(True)
        held.releases.put_nowait(False)
        await sink.wait()
    assert (sink.items, sink.error) == ([b"\xa5first", b"\xa4more"], None)
    assert "that it did not send" in caplog.text


async def test_a_recorded_conversation_cannot_be_replayed(pair, outsider, caplog):
    served = []

    async def remember(request, context):
        served.append(request)
        yield 0

    pair.serve(iterator_handler(remember))
    seen = await spy(outsider, pair)
    sink, _ = pair.send(b"\x01")
    await sink.wait()
    await pair.asking.close()
    while connections(pair):
        await asyncio.sleep(0.01)
    recorded = [seen.get_nowait() for _ in range(seen.qsize())]
    to_server = [message for message in recorded if ".instance." in message.subject]
    assert len(to_server) >= 3
    inbox = outsider.new_inbox()
    answers = await outsider.subscribe(inbox)
    for message in to_server[:3]:
        await outsider.publish(message.subject, message.data, reply=inbox)
    while (await answers.next_msg(TIMEOUT)).data[0] & 0x7F != CLOSE:
        pass
    assert "does not know this deployment's plane secret" in caplog.text
    assert served == [1]


async def test_a_lost_message_loses_the_connection_and_not_an_item(make_pair, outsider):
    """Without a secret anybody can send a number that is too high, which looks like a loss."""
    pair = await make_pair()
    held = Held()
    pair.serve(iterator_handler(held.serve))
    seen = await spy(outsider, pair)
    sink, _ = pair.send(b"\xc0")
    await sink.begin()
    inbox = next(m.reply for m in [seen.get_nowait() for _ in range(seen.qsize())] if ".inbox." in m.reply)
    forged = Envelope(b"", inbox.rpartition(".")[2], asking=False).seal(DATA, 1000, b"")
    await outsider.publish(inbox, forged)
    await sink.wait()
    assert isinstance(sink.error, Disconnected)
    assert "lost on the way" in sink.error.message
    await held.wait_cancelled()


async def test_an_asking_side_that_vanishes_without_a_word_frees_its_requests(make_pair):
    pair = await make_pair(keepalive_seconds=0.05)
    held = Held()
    pair.serve(iterator_handler(held.serve))
    sink, _ = pair.send(b"\xc0")
    await sink.begin()
    await pair.asking._link._client.close()
    await held.wait_cancelled()
    await sink.wait()
    assert isinstance(sink.error, Disconnected)


async def test_a_serving_side_that_vanishes_without_a_word_is_noticed(make_pair):
    pair = await make_pair(keepalive_seconds=0.05)
    held = Held()
    pair.serve(iterator_handler(held.serve))
    sink, _ = pair.send(b"\xc0")
    await sink.begin()
    await pair.serving._link._client.close()
    await sink.wait()
    assert isinstance(sink.error, Disconnected)
    await held.wait_cancelled()


async def test_user_and_password(nats_server, make_pair):
    login = ["--user=joe", "--pass=s3cret"]
    with NatsServer(arguments=login) as server:
        host = server.url.removeprefix("nats://")
        for broker in (
            BrokerOptions(servers=(server.url,), user="joe", password="s3cret"),
            BrokerOptions(servers=(f"nats://joe:s3cret@{host}",)),
        ):
            pair = await make_pair(broker=broker)
            pair.serve(iterator_handler(echo))
            sink, _ = pair.send(b"\x01")
            await sink.wait()
            assert sink.items == [b"\x01"]
            await pair.close()
        for broker in (
            BrokerOptions(servers=(server.url,)),
            BrokerOptions(servers=(server.url,), user="joe", password="x"),
        ):
            plane = create_request_plane("nats", PlaneOptions(broker=broker))
            with pytest.raises(ConfigError, match="refused this process") as caught:
                await plane.serve(1)
            assert "NATS_USER" in str(caught.value.hint)
            assert "s3cret" not in str(caught.value)
            await plane.close()


async def test_a_token(nats_server, make_pair):
    with NatsServer(arguments=["--auth=t0ken"]) as server:
        pair = await make_pair(broker=BrokerOptions(servers=(server.url,), token="t0ken"))
        pair.serve(iterator_handler(echo))
        sink, _ = pair.send(b"\x01")
        await sink.wait()
        assert sink.items == [b"\x01"]
        await pair.close()


async def test_the_next_server_of_a_cluster_is_tried(own_nats_server, nats_server, make_pair):
    own_nats_server.stop()
    pair = await make_pair(broker=BrokerOptions(servers=(own_nats_server.url, nats_server.url)))
    pair.serve(iterator_handler(echo))
    sink, _ = pair.send(b"\x01")
    await sink.wait()
    assert sink.items == [b"\x01"]


async def test_a_hung_server_holds_writers_back_and_loses_nothing(own_nats_server, make_pair):
    pair = await make_pair(broker=BrokerOptions(servers=(own_nats_server.url,)), keepalive_seconds=3600.0)
    produced = 0
    hung = asyncio.Event()

    async def eager(request, context):
        nonlocal produced
        yield 0
        await hung.wait()
        for _ in range(250):
            produced += 1
            yield bytes(200_000)
            await asyncio.sleep(0)

    pair.serve(iterator_handler(eager))
    sink, _ = pair.send(b"\x01")
    await sink.begin()
    own_nats_server.pause()
    hung.set()
    while not pair.serving._link.congested:
        await asyncio.sleep(0.01)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert produced < 200
    own_nats_server.resume()
    await sink.wait()
    assert (sink.error, len(sink.items), produced) == (None, 251, 250)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority and a certificate for 127.0.0.1 signed by it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on this machine")
    directory = tmp_path_factory.mktemp("certificates")
    (directory / "san.cnf").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    new = ["openssl", "req", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    authority = ["-x509", "-days", "2", "-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign"]
    authority += ["-keyout", "ca.key", "-out", "ca.pem"]
    sign = ["-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san.cnf"]
    for command in (
        [*new, *authority],
        [*new, "-subj", "/CN=nats", "-keyout", "nats.key", "-out", "nats.csr"],
        ["openssl", "x509", "-req", "-in", "nats.csr", "-out", "nats.pem", *sign],
    ):
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return directory


async def test_tls_with_client_certificates(nats_server, make_pair, certificates, caplog):
    ca, certificate, key = (str(certificates / name) for name in ("ca.pem", "nats.pem", "nats.key"))
    arguments = ["--tlsverify", f"--tlscacert={ca}", f"--tlscert={certificate}", f"--tlskey={key}"]
    with NatsServer(arguments=arguments) as server:
        own = {"servers": (server.url,), "tls_certificate_file": certificate, "tls_key_file": key}
        pair = await make_pair(broker=BrokerOptions(**own, tls_ca_file=ca))
        pair.serve(iterator_handler(echo))
        sink, _ = pair.send(b"\x01")
        await sink.wait()
        assert sink.items == [b"\x01"]
        await pair.close()
        insecure = await make_pair(broker=BrokerOptions(**own, tls_insecure=True))
        assert not insecure.serving._link.away
        await insecure.close()
        stranger = await make_pair(broker=BrokerOptions(**own))
        assert stranger.serving._link.away
        assert "certificate verify failed" in caplog.text
        await stranger.close()


async def test_what_the_server_forbids_is_logged(nats_server, tmp_path, make_pair, caplog):
    configuration = tmp_path / "permissions.conf"
    configuration.write_text(
        'authorization: {users: [{user: u, password: p, permissions: {subscribe: ["dyn.*.inbox.>"]}}]}\n'
    )
    with NatsServer(arguments=[f"--config={configuration}"]) as server:
        broker = BrokerOptions(servers=(server.url,), user="u", password="p")
        pair = await make_pair(broker=broker)
        sink, _ = pair.send()
        await sink.wait()
        assert isinstance(sink.error, CannotConnect)
        assert "permissions violation for subscription" in caplog.text.lower()
        await pair.close()


@pytest.mark.parametrize("content", [None, b"", b"no jwt here"])
def test_credentials_that_are_none_are_refused_at_the_start(tmp_path, content):
    path = tmp_path / "user.creds"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"user\.creds") as caught:
        create_request_plane("nats", PlaneOptions(broker=BrokerOptions(credentials_file=str(path))))
    assert "--nats-creds" in str(caught.value.hint)


@pytest.mark.parametrize("server", ["", "nats://", "nats://[::1"])
def test_a_server_that_is_no_url_is_named(server):
    with pytest.raises(ConfigError, match="is not a URL of NATS"):
        create_request_plane("nats", PlaneOptions(broker=BrokerOptions(servers=(server,))))


def test_the_settings_reach_the_plane():
    chosen = load_settings(
        RuntimeSettings,
        environ={
            "NATS_SERVER": "nats://a:4222, b",
            "NATS_USER": "u",
            "NATS_AUTH_PASSWORD": "p",
            "NATS_TOKEN": "t",
            "NATS_TLS_CA_CERT_PATH": "/ca",
        },
    )
    assert chosen.broker_options() == BrokerOptions(
        servers=("nats://a:4222", "b"), user="u", password="p", token="t", tls_ca_file="/ca"
    )
    assert load_settings(RuntimeSettings, environ={"NATS_URL": "nats://c"}).nats_servers == ["nats://c"]


async def test_a_remote_broker_needs_a_secret():
    plane = create_request_plane("nats", PlaneOptions(broker=BrokerOptions(servers=("nats://nats.example:4222",))))
    with pytest.raises(ConfigError, match=r"nats\.example, and there is no plane secret"):
        await plane.serve(1)
    await plane.close()


def test_a_certificate_file_that_is_not_there_names_the_flags(tmp_path):
    broker = BrokerOptions(tls_ca_file=str(tmp_path / "missing.pem"))
    with pytest.raises(ConfigError, match="No such file") as caught:
        create_request_plane("nats", PlaneOptions(broker=broker))
    assert "--nats-tls-ca-cert-path" in str(caught.value.hint)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nats.aio.client", None)
    with pytest.raises(PluginError) as caught:
        create_request_plane("nats", PlaneOptions())
    assert 'pip install "dynamo-core[nats]"' in str(caught.value.hint)


async def test_an_outage_fails_open_streams_and_new_ones_until_it_is_over(own_nats_server, make_pair):
    server = own_nats_server
    pair = await make_pair(broker=BrokerOptions(servers=(server.url,)), connect_timeout_seconds=0.2)
    held = Held()
    pair.serve(iterator_handler(held.serve))
    sink, _ = pair.send(b"\xc0")
    await sink.begin()
    server.kill()
    await sink.wait()
    assert isinstance(sink.error, Disconnected)
    assert "NATS was lost" in sink.error.message
    await held.wait_cancelled()
    during, _ = pair.send(b"\xc0")
    await during.wait()
    assert isinstance(during.error, CannotConnect)
    assert "NATS is away" in during.error.message
    server.start()

    async def until_it_works():
        while True:
            sink, _ = pair.send(b"\x01", Context("again"))
            await sink.wait()
            if sink.error is None:
                return sink.items
            assert isinstance(sink.error, CannotConnect)

    pair.serve(iterator_handler(echo))
    assert await asyncio.wait_for(until_it_works(), TIMEOUT) == [b"\x01"]
