"""EtcdDiscovery with users, passwords and certificates, checked by a real etcd."""

import asyncio
import shutil
import subprocess

import pytest

from dynamo.errors import DiscoveryError
from dynamo.runtime.etcd.connection import EtcdConnection
from dynamo.runtime.etcd.settings import EtcdSettings
from dynamo.runtime.etcd.target import EtcdTarget

WAIT_SECONDS = 20


async def add_users(port):
    """The administrator root, and a user `worker` who may use /dynamo/ only; then authentication is on."""
    from aetcd import rpc

    permission = rpc.Permission(permType=rpc.Permission.READWRITE, key=b"/dynamo/", range_end=b"/dynamo0")
    async with rpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        auth = rpc.AuthStub(channel)
        await auth.RoleAdd(rpc.AuthRoleAddRequest(name="serving"))
        await auth.RoleGrantPermission(rpc.AuthRoleGrantPermissionRequest(name="serving", perm=permission))
        for name, role in (("root", "root"), ("worker", "serving")):
            if role == "root":
                await auth.RoleAdd(rpc.AuthRoleAddRequest(name=role))
            await auth.UserAdd(rpc.AuthUserAddRequest(name=name, password=f"{name} password"))
            await auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=name, role=role))
        await auth.AuthEnable(rpc.AuthEnableRequest())


async def test_user_and_password(start_etcd, etcd_discovery, record, watch, caplog):
    etcd = start_etcd()
    credentials = {"username": "worker", "password": "worker password"}
    # Before authentication is on, credentials do no harm; when it is turned on, tokens are fetched.
    owner = await etcd_discovery(etcd.url, lease_seconds=3, **credentials)
    await owner.register(record(1))
    await add_users(etcd.port)
    reader = await etcd_discovery(f"etcd://worker:worker%20password@127.0.0.1:{etcd.port}", lease_seconds=3)
    watcher = watch(reader)
    known = await watcher.snapshot()
    assert set(known) == {1}
    await owner.register(record(2))
    await watcher.until({1, 2}, known)
    etcd.kill()  # forgets all tokens
    await asyncio.to_thread(etcd.start)

    async def again():
        while True:
            try:
                return await owner.register(record(3))
            except DiscoveryError:
                await asyncio.sleep(0.05)

    await asyncio.wait_for(again(), WAIT_SECONDS)
    await watcher.until({1, 2, 3}, known)
    assert "password" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"username": "worker", "password": "wrong"}, "invalid user ID or password"),
        ({"username": "nobody", "password": "wrong"}, "invalid user ID or password"),
        ({}, "user name is empty"),
    ],
    ids=["wrong password", "unknown user", "no user"],
)
async def test_wrong_credentials_are_refused_at_the_start(start_etcd, etcd_discovery, settings, reason):
    etcd = start_etcd()
    await add_users(etcd.port)
    with pytest.raises(DiscoveryError, match=reason) as caught:
        await etcd_discovery(etcd.url, **settings)
    assert "ETCD_PASSWORD" in caught.value.hint
    assert "wrong" not in caught.value.message


async def test_a_key_outside_the_users_rights_is_refused(start_etcd):
    etcd = start_etcd()
    await add_users(etcd.port)
    settings = EtcdSettings(username="worker", password="worker password")
    connection = EtcdConnection(EtcdTarget.parse(etcd.url, settings))
    with pytest.raises(DiscoveryError, match="permission denied"):
        await connection.read(b"/elsewhere/")
    with pytest.raises(DiscoveryError, match=f"127.0.0.1:{etcd.port}: it ended the watch: .*permission denied"):
        async for _ in connection.watch(b"/elsewhere/", 1, silence_seconds=10):
            pass
    await connection.close()


@pytest.fixture
def certificates(tmp_path):
    """PEM files of an authority, a server on 127.0.0.1 and a client; and of a stranger whom nobody trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("certificates are made with openssl, which is not on PATH")

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]

    def make(name, *options):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run(
            [openssl, "req", "-x509", *key, "-subj", f"/CN={name}", *files, *options],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    signed = ["-CA", "authority.pem", "-CAkey", "authority.key", "-addext", "basicConstraints=critical,CA:false"]
    make("authority")
    make("server", *signed, "-addext", "subjectAltName=IP:127.0.0.1")
    make("client", *signed)
    make("stranger")
    return tmp_path


async def test_tls_with_certificates_of_both_sides(start_etcd, etcd_discovery, certificates, record, watch):
    etcd = start_etcd(
        scheme="https",
        arguments=[
            f"--cert-file={certificates / 'server.pem'}",
            f"--key-file={certificates / 'server.key'}",
            f"--trusted-ca-file={certificates / 'authority.pem'}",
            "--client-cert-auth",
        ],
    )
    good = {
        "ca_cert": str(certificates / "authority.pem"),
        "client_cert": str(certificates / "client.pem"),
        "client_key": str(certificates / "client.key"),
    }
    owner, reader = await etcd_discovery(etcd.url, **good), await etcd_discovery(etcd.url, **good)
    watcher = watch(reader)
    await watcher.snapshot()
    await owner.register(record(1))
    assert (await watcher.next()).record.instance_id == 1

    with pytest.raises(DiscoveryError, match=f"127.0.0.1:{etcd.port}"):
        await etcd_discovery(etcd.url, startup_seconds=0.5, **{**good, "ca_cert": str(certificates / "stranger.pem")})
    with pytest.raises(DiscoveryError, match=f"127.0.0.1:{etcd.port}"):
        await etcd_discovery(etcd.url, startup_seconds=0.5, ca_cert=good["ca_cert"])
    with pytest.raises(DiscoveryError, match=f"127.0.0.1:{etcd.port}"):
        await etcd_discovery(f"etcd://http://127.0.0.1:{etcd.port}", startup_seconds=0.5)
