"""EtcdDiscovery with a real etcd that runs all the time; `test_etcd_outage` takes it away."""

import asyncio
import importlib.abc
import socket
import sys

import msgspec
import pytest

from dynamo.config import load_settings
from dynamo.errors import ConfigError, DiscoveryError, PluginError
from dynamo.runtime.discovery import create_discovery
from dynamo.runtime.discovery.etcd import EtcdDiscovery
from dynamo.runtime.discovery.etcd_records import record_key
from dynamo.runtime.etcd.connection import EtcdConnection
from dynamo.runtime.etcd.settings import EtcdSettings
from dynamo.runtime.etcd.target import EtcdTarget
from dynamo.testing.servers import free_port

INSTANCES = b"/dynamo/v1/instances/"


@pytest.fixture
async def connection(etcd_server):
    connection = EtcdConnection(EtcdTarget.parse(etcd_server.url, EtcdSettings()))
    yield connection
    await connection.close()


async def test_a_record_is_json_under_its_address(etcd_server, etcd_discovery, connection, record):
    discovery = await etcd_discovery(etcd_server.url)
    await discovery.register(record(0xAB, transports={"tcp": "127.0.0.1:1"}))
    snapshot = await connection.read(INSTANCES)
    key = b"/dynamo/v1/instances/ns/worker/generate/000000000000ab"
    assert {key: msgspec.json.decode(value) for key, value in snapshot.values.items()} == {
        key: {
            "namespace": "ns",
            "component": "worker",
            "endpoint": "generate",
            "instance_id": 0xAB,
            "transports": {"tcp": "127.0.0.1:1"},
        }
    }
    await discovery.close()
    assert (await connection.read(INSTANCES)).values == {}


async def test_is_chosen_by_its_scheme_and_finds_etcd_in_the_environment(etcd_server, monkeypatch, record):
    monkeypatch.setenv("ETCD_ENDPOINTS", etcd_server.endpoint)
    for url in ("etcd", "etcd://", etcd_server.url):
        discovery = create_discovery(url)
        await discovery.start()
        await discovery.register(record(1))
        assert [r.instance_id for r in await discovery.list("ns")] == [1]
        await discovery.close()


async def test_a_namespace_is_not_the_beginning_of_another(etcd_server, etcd_discovery, record, watch):
    discovery = await etcd_discovery(etcd_server.url)
    await discovery.register(record(1, namespace="n"))
    await discovery.register(record(2, namespace="ns"))
    assert [r.instance_id for r in await discovery.list("n")] == [1]
    assert list(await watch(discovery, "n").snapshot()) == [1]


async def test_refuses_ids_that_json_readers_would_round(etcd_server, etcd_discovery, record):
    discovery = await etcd_discovery(etcd_server.url)
    for instance_id in (-1, 2**53):
        with pytest.raises(ConfigError, match="instance id"):
            await discovery.register(record(instance_id))


async def test_start_without_etcd_names_endpoints_and_reason():
    ports = [free_port(), free_port()]
    url = ",".join(f"127.0.0.1:{port}" for port in ports)
    discovery = EtcdDiscovery(f"etcd://{url}", settings=EtcdSettings(startup_seconds=0.5))
    with pytest.raises(DiscoveryError, match="refused") as caught:
        await discovery.start()
    assert all(str(port) in caught.value.message for port in ports)
    assert "ETCD_ENDPOINTS" in caught.value.hint
    await discovery.close()


async def test_start_without_an_answer_gives_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, nobody speaks
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        discovery = EtcdDiscovery(f"etcd://{endpoint}", settings=EtcdSettings(startup_seconds=0.5))
        with pytest.raises(DiscoveryError, match=endpoint):
            await asyncio.wait_for(discovery.start(), 20)
        await discovery.close()


async def test_use_after_close_says_so(etcd_server, etcd_discovery, record):
    discovery = await etcd_discovery(etcd_server.url)
    await discovery.close()
    with pytest.raises(DiscoveryError, match="closed"):
        await discovery.register(record(1))
    with pytest.raises(DiscoveryError, match="closed"):
        await discovery.list()
    assert [event async for event in discovery.watch()] == []


async def test_the_other_endpoint_is_used_if_one_is_not_there(etcd_server, etcd_discovery, record, watch):
    url = f"etcd://127.0.0.1:{free_port()},127.0.0.1:{etcd_server.port}"
    discovery = await etcd_discovery(url)
    watcher = watch(discovery)
    assert await watcher.snapshot() == {}
    await discovery.register(record(1))
    assert (await watcher.next()).record.instance_id == 1


async def test_the_other_endpoint_is_used_if_one_hangs(etcd_server, etcd_discovery, record):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"etcd://127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{etcd_server.port}"
        discovery = await etcd_discovery(url, startup_seconds=1)
        await discovery.register(record(1))
        assert [r.instance_id for r in await discovery.list()] == [1]
        await discovery.close()


async def test_hostile_values_do_not_hide_the_good_ones(etcd_server, etcd_discovery, connection, record, watch, caplog):
    discovery = await etcd_discovery(etcd_server.url)
    watcher = watch(discovery)
    await watcher.snapshot()
    bad = [INSTANCES + b"ns/worker/generate/zz", INSTANCES + b"\xff\x00", record_key(record(3))]
    for key in bad:
        await connection.put(key, b"\x80\x04garbage")
    await discovery.register(record(1))
    assert (await watcher.next()).record.instance_id == 1
    for _ in range(3):
        assert [r.instance_id for r in await discovery.list()] == [1]
    for key in bad:
        await connection.delete(key)
    await discovery.register(record(2))
    assert (await watcher.next()).record.instance_id == 2
    assert sum("ignoring etcd key" in message for message in caplog.messages) == len(bad)


async def test_hundreds_of_instances(etcd_server, etcd_discovery, record, watch):
    """More than fit one page of a read, and larger together than gRPC's own limit of a message."""
    owner, reader = await etcd_discovery(etcd_server.url), await etcd_discovery(etcd_server.url)
    early = watch(reader)
    known = await early.snapshot()
    card_sized = "x" * 20_000
    expected = set(range(300))
    await asyncio.gather(*(owner.register(record(number, metadata={"x": card_sized})) for number in expected))
    await early.until(expected, known)
    late = await etcd_discovery(etcd_server.url)
    assert set(await watch(late).snapshot()) == expected
    assert {r.instance_id for r in await late.list("ns")} == expected
    await owner.close()
    await early.until(set(), known)


async def test_a_failed_registration_leaves_the_record_that_was_there(etcd_server, etcd_discovery, record):
    discovery = await etcd_discovery(etcd_server.url)
    await discovery.register(record(1))
    too_large = {"x": "x" * 2_000_000}
    with pytest.raises(DiscoveryError, match="too large"):
        await discovery.register(record(1, metadata=too_large))
    with pytest.raises(DiscoveryError, match="too large"):
        await discovery.register(record(2, metadata=too_large))
    await discovery.register(record(3))
    assert [(r.instance_id, r.metadata) for r in await discovery.list()] == [(1, {}), (3, {})]


async def test_a_lease_that_was_ended_from_outside_is_taken_again(etcd_server, etcd_discovery, connection, record):
    discovery = await etcd_discovery(etcd_server.url, lease_seconds=1)
    await discovery.register(record(1))
    await connection.delete(record_key(record(1)))  # and only the lease shows that it was ours
    await asyncio.to_thread(_revoke_all, etcd_server.port)

    async def there():
        while record_key(record(1)) not in (await connection.read(INSTANCES)).values:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(there(), 20)


async def test_a_watch_from_a_compacted_revision_ends(etcd_server, connection):
    for number in range(3):
        await connection.put(b"/dynamo/test", b"%d" % number)
    revision = (await connection.read(b"/dynamo/test")).revision
    await asyncio.to_thread(_compact, etcd_server.port, revision)
    watch = connection.watch(b"/dynamo/test", revision - 1, silence_seconds=10)
    assert [changes async for changes in watch] in ([], [[]])
    assert (await connection.read(b"/dynamo/test")).values == {b"/dynamo/test": b"2"}
    await connection.delete(b"/dynamo/test")


async def test_closing_under_a_call_is_an_error_of_the_call():
    """gRPC hands it on as CancelledError, as if the caller had given up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"etcd://127.0.0.1:{silent.getsockname()[1]}"
        connection = EtcdConnection(EtcdTarget.parse(url, EtcdSettings()), call_seconds=60)
        reading = asyncio.ensure_future(connection.read(INSTANCES))
        peer, _ = await asyncio.to_thread(silent.accept)
        with peer:
            await connection.close()
            with pytest.raises(DiscoveryError, match="closed"):
                await asyncio.wait_for(reading, 20)


class _Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "aetcd":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def test_without_the_client_library_the_error_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "aetcd"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Hidden(), *sys.meta_path])
    with pytest.raises(PluginError, match="not installed") as caught:
        EtcdDiscovery("etcd://a", settings=load_settings(EtcdSettings))
    assert caught.value.hint == 'pip install "dynamo-core[etcd]"'


def _compact(port, revision):
    async def compact():
        import aetcd

        async with aetcd.Client("127.0.0.1", port) as client:
            await client.compact(revision, physical=True)

    asyncio.run(compact())


def _revoke_all(port):
    async def revoke():
        from aetcd import rpc

        async with rpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = rpc.LeaseStub(channel)
            for lease in (await stub.LeaseLeases(rpc.LeaseLeasesRequest())).leases:
                await stub.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease.ID))

    asyncio.run(revoke())
