"""Models from a hub: a small hub of our own on this machine, and the process of a worker that asks it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.e2e

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TAGGED = "76543210fedcba9876543210fedcba9876543210"
#: More than the 10 MiB that the hub client reads at once: of a smaller file it would keep nothing when cut.
WEIGHTS = bytes(range(256)) * 4096 * 12
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"not wanted",
    "README.md": b"not wanted",
}


class Hub:
    """The part of a hub's HTTP API that downloads use: ``org/tiny`` for all, ``org/private`` for one token."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cut_weights_once_at: int | None = None
        self.broken = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *args: object) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def downloads(self, name: str) -> list[dict[str, str]]:
        """Headers of the GET requests of one file."""
        return [headers for method, path, headers in self.requests if method == "GET" and path.endswith(f"/{name}")]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path, {k.lower(): v for k, v in request.headers.items()}))
        if self.broken:
            return self._send(request, 500, b"", {})
        if match := re.fullmatch(r"/api/models/(.+)/(?:revision|tree)/([^/]+)", path):
            return self._describe(request, match[1], match[2], is_tree="/tree/" in path)
        if match := re.fullmatch(r"/org/(?:tiny|private)/resolve/([^/]+)/(.+)", path):
            return self._file(request, match[1], match[2])
        return self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})

    def _describe(self, request, repo: str, revision: str, *, is_tree: bool) -> None:
        authorized = request.headers.get("Authorization") == "Bearer hf_good"
        if repo == "org/gated":
            return self._send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        if repo != "org/tiny" and not (repo == "org/private" and authorized):
            return self._send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        commit = {"main": COMMIT, COMMIT: COMMIT, "v1": TAGGED, TAGGED: TAGGED}.get(revision)
        if commit is None:
            return self._send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if is_tree:
            body = [{"type": "file", "path": n, "size": len(d), "oid": _sha(d)} for n, d in FILES.items()]
            return self._send(request, 200, json.dumps(body).encode(), {})
        info = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in FILES]}
        return self._send(request, 200, json.dumps(info).encode(), {})

    def _file(self, request, commit: str, name: str) -> None:
        data = FILES[name]
        headers = {"ETag": f'"{_sha(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.cut_weights_once_at
        if cut is not None and name == "model.safetensors" and request.command == "GET":
            self.cut_weights_once_at = None
            self._head(request, 200, len(data), headers)
            request.wfile.write(data[:cut])
            request.wfile.flush()
            request.close_connection = True
            return None
        return self._send(request, 206 if start else 200, data[start:], headers)

    def _send(self, request, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(request, status, len(body), headers)
        if request.command == "GET":
            request.wfile.write(body)

    def _head(self, request, status: int, length: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(length), "Content-Type": "application/json", **headers}.items():
            request.send_header(name, value)
        request.end_headers()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub():
    made = Hub()
    yield made
    with contextlib.suppress(OSError):
        made.close()


RESOLVE = """
import sys
from dynamo.errors import ConfigError
from dynamo.worker.models import resolve_model
try:
    print(resolve_model(sys.argv[1], revision=sys.argv[2]))
except ConfigError as error:
    print(f"ConfigError({error.param})", error)
"""


@pytest.fixture
def resolve(tmp_path, hub):
    """Resolves a model in a fresh process, whose cache is the test's own; what it prints, and its stderr."""

    def run(model: str, revision: str = "", **environ: str) -> tuple[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        done = subprocess.run(
            [sys.executable, "-c", RESOLVE, model, revision],
            env={**inherited, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*", **environ},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n"), done.stderr

    return run


def test_a_model_is_downloaded_with_what_engines_need_and_no_more(resolve, hub):
    directory, _ = resolve("org/tiny")
    assert sorted(path.name for path in Path(directory).iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (Path(directory) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.downloads("pytorch_model.bin") == []


def test_a_private_model_needs_the_token(resolve, hub):
    said, _ = resolve("org/private")
    assert "set HF_TOKEN for a private model" in said
    hub.requests.clear()
    directory, _ = resolve("org/private", HF_TOKEN="hf_good")
    assert (Path(directory) / "tokenizer.json").is_file()
    sent = {headers.get("authorization") for _, path, headers in hub.requests if "org/private" in path}
    assert sent == {"Bearer hf_good"}


def test_without_a_token_none_is_sent(resolve, hub):
    resolve("org/tiny")
    assert [path for _, path, headers in hub.requests if "authorization" in headers] == []


def test_a_revision_is_fetched_and_kept_apart(resolve):
    main, _ = resolve("org/tiny")
    tagged, _ = resolve("org/tiny", "v1")
    assert (Path(main).name, Path(tagged).name) == (COMMIT, TAGGED)
    assert resolve("org/tiny", TAGGED)[0] == tagged


def test_a_download_that_is_cut_goes_on_where_it_stopped(resolve, hub):
    hub.cut_weights_once_at = 11 << 20
    directory, _ = resolve("org/tiny")
    assert (Path(directory) / "model.safetensors").read_bytes() == WEIGHTS
    first, second = hub.downloads("model.safetensors")
    assert "range" not in first
    assert 0 < int(second["range"].removeprefix("bytes=").removesuffix("-")) <= 11 << 20


def test_files_that_are_here_are_not_fetched_again(resolve, hub):
    directory, _ = resolve("org/tiny")
    (Path(directory) / "tokenizer.json").unlink()
    hub.requests.clear()
    assert resolve("org/tiny")[0] == directory
    assert (Path(directory) / "tokenizer.json").read_bytes() == b"{}"
    assert hub.downloads("model.safetensors") == []


def test_progress_does_not_fill_a_log(resolve):
    _, stderr = resolve("org/tiny")
    assert "\x1b" not in stderr
    assert len(stderr.splitlines()) < 20


def test_with_the_hub_down_the_cache_serves(resolve, hub):
    directory, _ = resolve("org/tiny")
    hub.close()
    assert resolve("org/tiny")[0] == directory


def test_offline_the_cache_serves_and_nobody_is_asked(resolve, hub):
    directory, _ = resolve("org/tiny")
    hub.requests.clear()
    assert resolve("org/tiny", HF_HUB_OFFLINE="1")[0] == directory
    assert hub.requests == []


def test_offline_and_not_cached_says_that_offline_is_set(resolve, hub):
    said, _ = resolve("org/tiny", HF_HUB_OFFLINE="1")
    assert said.startswith(
        "ConfigError(model) model 'org/tiny' is not in the local cache, and HF_HUB_OFFLINE is set\n"
        "give a local directory with --model"
    )
    assert hub.requests == []


def test_unreachable_and_not_cached_names_the_endpoint(resolve, hub):
    hub.close()
    said, _ = resolve("org/tiny")
    assert said.startswith(
        f"ConfigError(model) model 'org/tiny' is not in the local cache, and {hub.url} cannot be reached\n"
    )


def test_half_a_model_is_not_served_when_the_hub_is_down(resolve, hub):
    directory, _ = resolve("org/tiny")
    (Path(directory) / "model.safetensors").unlink()
    hub.close()
    said, _ = resolve("org/tiny")
    assert said.startswith("ConfigError(model) model 'org/tiny' is not in the local cache")


def test_a_hub_that_fails_is_not_reachable(resolve, hub):
    hub.broken = True
    said, _ = resolve("org/tiny")
    assert said.startswith("ConfigError(model) model 'org/tiny' is not in the local cache")


@pytest.mark.parametrize("model", ["org/unknown", "unknown"])
def test_an_unknown_model_is_named(resolve, hub, model):
    said, _ = resolve(model)
    assert said == (
        f"ConfigError(model) model '{model}' is not on {hub.url}, or is private\n"
        "check the spelling; set HF_TOKEN for a private model"
    )


def test_an_unknown_revision_is_named(resolve, hub):
    said, _ = resolve("org/tiny", "v9")
    assert said == (
        f"ConfigError(revision) model 'org/tiny' at revision 'v9' does not exist on {hub.url}\ncheck --revision"
    )


def test_a_gated_model_says_how_to_get_it(resolve):
    said, _ = resolve("org/gated", HF_TOKEN="hf_good")
    assert said == "ConfigError(model) model 'org/gated' is gated\naccept its terms on the hub and set HF_TOKEN"


def test_the_token_is_never_printed(resolve, hub):
    outputs = [resolve("org/gated", HF_TOKEN="hf_secret"), resolve("org/unknown", HF_TOKEN="hf_secret")]
    assert "hf_secret" not in repr(outputs)
