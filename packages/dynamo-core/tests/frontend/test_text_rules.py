"""A text of the wrong form is told the rule in words, wherever it comes from."""

from __future__ import annotations

import pytest

from dynamo.errors import ConfigError, InvalidRequest
from dynamo.frontend.requests import decode_body
from dynamo.frontend.select.requests import ReserveRequest
from dynamo.frontend.select.workers import WorkerRegistration, read_workers_file

WORKER = b'{"worker_id": "a", "model": "m", "kv_events": {"endpoint": "127.0.0.1:5557"}}'


@pytest.mark.parametrize(
    ("body", "kind", "param", "rule"),
    [
        (WORKER, WorkerRegistration, "kv_events.endpoint", "expected tcp://HOST:PORT"),
        (b'{"worker_id": "a b", "model": "m"}', WorkerRegistration, "worker_id", "expected 1 to 256 letters, digits"),
        (b'{"reservation_id": "a/b"}', ReserveRequest, "reservation_id", "expected 1 to 128 letters, digits"),
    ],
)
def test_a_body_is_told_the_rule(body, kind, param, rule):
    with pytest.raises(InvalidRequest) as caught:
        decode_body(body, kind)
    assert caught.value.param == param
    assert f"'{param}': {rule}" in caught.value.message
    assert "regex" not in caught.value.message


def test_a_workers_file_is_told_the_rule(tmp_path):
    file = tmp_path / "workers.json"
    file.write_bytes(b"[" + WORKER + b"]")
    with pytest.raises(ConfigError, match="Expected tcp://HOST:PORT - at") as caught:
        read_workers_file(file)
    assert "regex" not in caught.value.message
