"""HTTPS with real certificates: handshake, streams, clients that must show one, renewal, bad files."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import subprocess

import httpx
import pytest

from dynamo.errors import ConfigError
from dynamo.frontend.security import TlsFiles
from dynamo.frontend.settings import FrontendSettings

pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program"),
    # Python 3.10's transports say so of connections that the peer closed.
    pytest.mark.filterwarnings("ignore:unclosed transport <asyncio.sslproto:ResourceWarning"),
]


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, directory, name):
        self.directory = directory
        self.certificate, self.key = directory / f"{name}.pem", directory / f"{name}.key"
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        self._new_key = new_key
        usage = ["-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        openssl("req", "-x509", *new_key, *usage, "-keyout", self.key, "-out", self.certificate)

    def issue(self, name):
        """Certificate and key for 127.0.0.1."""
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1\n")
        openssl("req", *self._new_key[:-2], "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        signer = ["-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial", "-days", "2"]
        openssl("x509", "-req", "-in", request, *signer, "-extfile", extensions, "-out", certificate)
        return certificate, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def served(authority):
    return authority.issue("server")


def client(deployment, authority, certificate=None):
    context = ssl.create_default_context(cafile=authority.certificate)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{deployment.frontend.server.port}", verify=context, timeout=20, trust_env=False
    )


async def peer_name(deployment, authority):
    """Common name of the certificate that the server shows."""
    context = ssl.create_default_context(cafile=authority.certificate)
    _, writer = await asyncio.open_connection("127.0.0.1", deployment.frontend.server.port, ssl=context)
    subject = writer.get_extra_info("peercert")["subject"]
    writer.close()
    await writer.wait_closed()
    return dict(pair for (pair,) in subject)["commonName"]


async def test_requests_and_streams_over_tls(make_deployment, authority, served):
    deployment = await make_deployment({"backend": "echo"}, tls_cert_path=str(served[0]), tls_key_path=str(served[1]))
    await deployment.serves("echo")
    body = {"model": "echo", "prompt": "one two three " * 200}
    async with client(deployment, authority) as https:
        whole = await https.post("/v1/completions", json=body)
        streamed = await https.post("/v1/completions", json={**body, "stream": True})
    assert whole.status_code == 200
    assert streamed.text.endswith("data: [DONE]\n\n")
    with pytest.raises(httpx.HTTPError):
        await deployment.client.get("/live")


async def test_old_protocols_are_refused(make_deployment, authority, served):
    deployment = await make_deployment(tls_cert_path=str(served[0]), tls_key_path=str(served[1]))
    assert deployment.frontend._tls.context.minimum_version is ssl.TLSVersion.TLSv1_2
    async with client(deployment, authority) as https:
        assert (await https.get("/live")).status_code == 200


async def test_clients_must_show_a_certificate(make_deployment, authority, served, tmp_path):
    deployment = await make_deployment(
        tls_cert_path=str(served[0]),
        tls_key_path=str(served[1]),
        tls_client_ca_cert_path=str(authority.certificate),
    )
    async with client(deployment, authority, authority.issue("client")) as https:
        assert (await https.get("/live")).status_code == 200
    stranger = Authority(tmp_path, "stranger").issue("stranger-client")
    for certificate in (None, stranger):
        async with client(deployment, authority, certificate) as https:
            with pytest.raises(httpx.HTTPError):
                await https.get("/live")


async def test_a_renewed_certificate_is_used_without_a_restart(make_deployment, authority, tmp_path, caplog):
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def put(source, target):
        shutil.copy(source, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)

    caplog.set_level(logging.INFO, "dynamo.frontend.security.watching")
    first, second = authority.issue("first"), authority.issue("second")
    put(first[0], certificate)
    put(first[1], key)
    deployment = await make_deployment(
        tls_cert_path=str(certificate), tls_key_path=str(key), security_reload_seconds=0.02
    )
    assert await peer_name(deployment, authority) == "first"
    put(second[0], certificate)
    await deployment.until(lambda: "the old one stays in force" in caplog.text)
    assert await peer_name(deployment, authority) == "first"
    put(second[1], key)
    await deployment.until(lambda: "reloaded the TLS certificate" in caplog.text)
    assert await peer_name(deployment, authority) == "second"


def settings(**paths):
    return FrontendSettings(**{name: str(path) for name, path in paths.items()})


def test_bad_files_stop_the_start(authority, served, tmp_path):
    certificate, key = served
    assert TlsFiles.from_settings(FrontendSettings()) is None
    _, other_key = authority.issue("other")
    encrypted = tmp_path / "encrypted.key"
    openssl("ec", "-in", key, "-aes128", "-passout", "pass:secret", "-out", encrypted)
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    absent = tmp_path / "absent"
    for paths, message in [
        ({"tls_cert_path": certificate}, "--tls-key-path is missing"),
        ({"tls_key_path": key}, "--tls-cert-path is missing"),
        ({"tls_client_ca_cert_path": certificate}, "--tls-cert-path is missing"),
        ({"tls_cert_path": absent, "tls_key_path": key}, f"{absent}: No such file"),
        ({"tls_cert_path": certificate, "tls_key_path": absent}, f"{absent}: No such file"),
        ({"tls_cert_path": certificate, "tls_key_path": tmp_path}, f"{tmp_path}: Is a directory"),
        ({"tls_cert_path": certificate, "tls_key_path": other_key}, f"{other_key} does not belong to .* {certificate}"),
        ({"tls_cert_path": certificate, "tls_key_path": encrypted}, f"{encrypted} is encrypted"),
        ({"tls_cert_path": garbage, "tls_key_path": key}, f"{garbage} holds no PEM of a certificate"),
        ({"tls_cert_path": certificate, "tls_key_path": garbage}, f"{garbage} holds no PEM of a private key"),
        ({"tls_cert_path": key, "tls_key_path": certificate}, f"{key} holds no PEM of a certificate"),
        ({"tls_cert_path": damaged, "tls_key_path": key}, f"cannot use the TLS certificate {damaged}"),
        (
            {"tls_cert_path": certificate, "tls_key_path": key, "tls_client_ca_cert_path": garbage},
            "cannot read the client authorities",
        ),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            TlsFiles.from_settings(settings(**paths))
        assert "[Errno" not in str(caught.value)
