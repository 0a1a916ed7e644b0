"""The tcp plane over TLS: with and without client certificates, wrong authorities, wrong names, missing files."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from dynamo.errors import CannotConnect, ConfigError
from dynamo.protocols.planes import PlaneOptions, PlaneTls
from dynamo.runtime.request_plane import create_request_plane
from dynamo.runtime.server import iterator_handler

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")


async def count(request, context):
    for number in range(request):
        yield number


class Authority:
    """A certificate authority made for the test."""

    def __init__(self, directory, name):
        self.directory = directory / name
        self.directory.mkdir()
        self.certificate = str(self.directory / "ca.pem")
        self._key = str(self.directory / "ca.key")
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip

    def issue(self, name):
        """Certificate and key for `name`."""
        base = self.directory / name
        key, request, certificate = f"{base}.key", f"{base}.csr", f"{base}.pem"
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{name}\n")
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", key, "-out", request,
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            "-days", "2", "-extfile", str(extensions), "-out", certificate,
        )  # fmt: skip
        return certificate, key


def _openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(scope="module")
def server_files(authority):
    certificate, key = authority.issue("worker.test")
    return {"certificate_file": certificate, "key_file": key}


@pytest.fixture
def answer(pair_class):
    """What one request over two ends comes to: items, or the error."""

    async def ask(serving: PlaneTls, asking: PlaneTls):
        pair = await pair_class("tcp", PlaneOptions(tls=serving), PlaneOptions(tls=asking)).start()
        try:
            pair.serve(iterator_handler(count, int))
            sink, _ = pair.send(b"\x03")
            await sink.wait()
            return sink.error or sink.items
        finally:
            await pair.close()

    return ask


async def test_requests_travel_over_tls(answer, authority, server_files):
    asking = PlaneTls(ca_file=authority.certificate, server_name="worker.test")
    assert await answer(PlaneTls(**server_files), asking) == [b"\x00", b"\x01", b"\x02"]


async def test_the_name_is_checked_when_it_is_given(answer, authority, server_files):
    asking = PlaneTls(ca_file=authority.certificate, server_name="somebody.else")
    assert isinstance(await answer(PlaneTls(**server_files), asking), CannotConnect)


async def test_another_authority_is_refused(answer, tmp_path, server_files):
    asking = PlaneTls(ca_file=Authority(tmp_path, "stranger").certificate)
    assert isinstance(await answer(PlaneTls(**server_files), asking), CannotConnect)


async def test_client_certificates_are_asked_for_and_checked(answer, authority, server_files, tmp_path):
    serving = PlaneTls(**server_files, client_ca_file=authority.certificate)
    certificate, key = authority.issue("frontend.test")
    good = PlaneTls(ca_file=authority.certificate, client_certificate_file=certificate, client_key_file=key)
    assert len(await answer(serving, good)) == 3
    without = PlaneTls(ca_file=authority.certificate)
    assert isinstance(await answer(serving, without), CannotConnect)
    certificate, key = Authority(tmp_path, "stranger").issue("intruder.test")
    strange = PlaneTls(ca_file=authority.certificate, client_certificate_file=certificate, client_key_file=key)
    assert isinstance(await answer(serving, strange), CannotConnect)


async def test_plain_and_tls_ends_do_not_meet(answer, authority, server_files):
    assert isinstance(await answer(PlaneTls(**server_files), PlaneTls()), CannotConnect)
    assert isinstance(await answer(PlaneTls(), PlaneTls(ca_file=authority.certificate)), CannotConnect)


async def test_client_certificates_stand_for_the_secret_on_an_open_address(authority, server_files):
    tls = PlaneTls(**server_files, client_ca_file=authority.certificate)
    plane = create_request_plane("tcp", PlaneOptions(host="0.0.0.0", tls=tls))
    await plane.serve(1)
    await plane.close()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"certificate_file": "/missing.pem"}, "No such file"),
        ({"client_ca_file": "/missing.pem"}, "without TLS"),
    ],
)
async def test_missing_files_name_the_flags(files, words):
    plane = create_request_plane("tcp", PlaneOptions(tls=PlaneTls(**files)))
    with pytest.raises(ConfigError, match=words) as caught:
        await plane.serve(1)
    assert "--tcp-tls-cert-path" in str(caught.value.hint)


async def test_a_file_that_is_no_certificate_names_the_flags(tmp_path):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a certificate")
    plane = create_request_plane("tcp", PlaneOptions(tls=PlaneTls(certificate_file=str(wrong))))
    with pytest.raises(ConfigError, match="TLS files cannot be used"):
        await plane.serve(1)
