"""`dynamo serve` with TLS and API keys: it knows when the model is there, says how to ask, and `dynamo chat` can."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys

import httpx
import pytest

from tests.e2e.served import serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program"),
]
KEY = "sk-a-key-of-this-test"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that has signed itself, and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    certificate, key = directory / "tls.crt", directory / "tls.key"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *new_key, *name, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return certificate, key


@pytest.fixture(scope="module")
def served(certificate, tmp_path_factory):
    directory = tmp_path_factory.mktemp("secured")
    (directory / "keys.yaml").write_text(f"- {{name: tester, key: {KEY}, admin: true}}\n")
    files = {"--tls-cert-path": certificate[0], "--tls-key-path": certificate[1]}
    files["--api-key-file"] = directory / "keys.yaml"
    flags = [word for flag, path in files.items() for word in (flag, str(path))]
    with serving(directory, "--backend", "echo", *flags) as running:
        yield running.until_ready()


def chat(served, *flags, **environment):
    command = [sys.executable, "-m", "dynamo.cli", "chat", "--url", f"https://127.0.0.1:{served.port}", *flags]
    variables = {**os.environ, "OPENAI_API_KEY": KEY, **environment}
    return subprocess.run([*command, "hello"], env=variables, capture_output=True, text=True, timeout=60, check=False)


def test_ready_means_that_the_model_answers(served, certificate):
    context = ssl.create_default_context(cafile=certificate[0])
    url, headers = f"https://127.0.0.1:{served.port}", {"authorization": f"Bearer {KEY}"}
    body = {"model": "echo", "prompt": "hello", "max_tokens": 2}
    with httpx.Client(verify=context, headers=headers, timeout=20) as client:
        assert client.post(f"{url}/v1/completions", json=body).status_code == 200
    assert f"{url}  (model echo" in served.text()
    assert f"curl {url}/v1/chat/completions" in served.text()
    assert "Authorization: Bearer $YOUR_KEY" in served.text()
    assert KEY not in served.text()


def test_chat_trusts_the_authority_that_it_is_given(served, certificate):
    for answer in (
        chat(served, "--cacert", str(certificate[0])),
        chat(served, SSL_CERT_FILE=str(certificate[0])),
    ):
        assert (answer.returncode, answer.stderr) == (0, "")
        assert "hello" in answer.stdout


def test_chat_says_why_it_does_not_trust_the_server(served):
    answer = chat(served)
    assert answer.returncode == 1
    assert "is not trusted: self-signed certificate" in answer.stderr
    assert "--cacert" in answer.stderr
    assert "dynamo serve" not in answer.stderr


def test_chat_says_when_the_scheme_is_wrong(served):
    answer = chat(served, "--url", f"http://127.0.0.1:{served.port}")
    assert answer.returncode == 1
    assert "its URL begins with https://" in answer.stderr


def test_chat_says_when_the_name_is_not_in_the_certificate(served, certificate):
    flags = ("--url", f"https://localhost:{served.port}", "--cacert", str(certificate[0]))
    assert "ask by a name that is in its certificate" in chat(served, *flags).stderr


@pytest.mark.parametrize("content", [None, "nothing"])
def test_a_file_without_certificates_is_named(served, tmp_path, content):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    for answer in (chat(served, "--cacert", str(file)), chat(served, SSL_CERT_FILE=str(file))):
        assert answer.returncode == 1
        assert f"cannot read the certificates in {file}: " in answer.stderr


def test_explain_trusts_and_says_the_same(served, certificate):
    command = [sys.executable, "-m", "dynamo.cli", "explain", "nope", "--url", f"https://127.0.0.1:{served.port}"]
    command += ["--api-key", KEY]
    for flags, message in (([], "--cacert"), (["--cacert", str(certificate[0])], "only the last decisions are kept")):
        answer = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60, check=False)
        assert answer.returncode == 1
        assert answer.stderr.count(message) == 1
