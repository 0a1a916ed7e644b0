"""``python3 -m dynamo.frontend.select`` as a process, before engines that publish KV events as vLLM does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from dynamo.runtime.distributed import EXIT_CONFIG
from tests.e2e.processes import wait_until
from tests.e2e.select_process import SelectService

pytestmark = pytest.mark.e2e

SIZE = 16


class Engine:
    """The KV event socket of a vLLM server."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._number = 0

    def publish(self, *events: object) -> None:
        payload = msgspec.msgpack.encode([0.0, list(events), 0])
        self._socket.send_multipart([b"kv", self._number.to_bytes(8, "big"), payload])
        self._number += 1

    def store(self, tokens: list[int]) -> None:
        self.publish(
            {
                "type": "BlockStored",
                "block_hashes": list(range(len(tokens) // SIZE)),
                "parent_block_hash": None,
                "token_ids": tokens,
                "block_size": SIZE,
                "medium": "GPU",
            }
        )

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    made = [Engine(), Engine()]
    yield made
    for engine in made:
        engine.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    made: list[SelectService] = []

    def start_service(*flags: str, **options: object) -> SelectService:
        made.append(SelectService(tmp_path, *flags, **options))
        made[-1].start()
        made[-1].until_ready()
        return made[-1]

    yield start_service
    for service in made:
        service.end()


def registration(name: str, engine: Engine | None = None, **fields: object) -> dict:
    found = {"worker_id": name, "model": "m", "url": f"http://{name}:8000", "block_size": SIZE, **fields}
    if engine is not None:
        found["kv_events"] = {"endpoint": f"tcp://127.0.0.1:{engine.port}", "topic": "kv"}
    return found


def test_the_worker_that_holds_the_prompt_is_chosen(start, engines: list[Engine], tmp_path: Path) -> None:
    file = tmp_path / "workers.yaml"
    file.write_text(json.dumps([registration("one", engines[0])]))
    service = start("--workers-file", str(file))
    service.post("/workers", registration("two", engines[1]))
    assert [worker["worker_id"] for worker in service.get("/workers")["workers"]] == ["one", "two"]

    tokens = list(range(100, 100 + 5 * SIZE))

    def indexed(engine: Engine, worker: str) -> bool:
        engine.store(tokens)  # the first messages may come before the subscription
        return service.get(f"/workers/{worker}")["kv_event_ranks"][0]["blocks"] == 5

    wait_until(lambda: indexed(engines[1], "two"), "the blocks of two", service)
    found = service.post("/select", {"model": "m", "token_ids": [*tokens, 1, 2], "explain": True})
    assert (found["worker_id"], found["url"], found["dp_rank"]) == ("two", "http://two:8000", 0)
    assert (found["overlap_blocks"], found["cached_tokens"], found["prompt_tokens"]) == (5, 80, 82)
    assert {candidate["worker_id"] for candidate in found["explain"]["candidates"]} == {"one", "two"}
    scores = service.post("/overlap_scores", {"token_ids": tokens})["workers"]
    assert {score["worker_id"]: score["overlap_blocks"] for score in scores} == {"one": 0, "two": 5}

    engines[1].publish({"type": "AllBlocksCleared"})
    wait_until(
        lambda: service.post("/select", {"token_ids": tokens})["overlap_blocks"] == 0, "the cleared cache", service
    )
    assert service.ask("DELETE", "/workers/two").status_code == 200
    assert service.post("/select", {"token_ids": tokens})["worker_id"] == "one"
    assert service.ask("DELETE", "/workers/two").status_code == 404


def test_reservations_are_load_and_approximate_caches_work(start) -> None:
    service = start("--reservation-seconds", "600")
    assert service.ask("GET", "/ready").status_code == 503
    for name in ("one", "two"):
        service.post("/workers", registration(name))
    assert service.ask("GET", "/ready").status_code == 200
    tokens = list(range(40 * SIZE))
    first = service.post("/select_and_reserve", {"token_ids": tokens, "reservation_id": "a"})

    def loads() -> dict[str, tuple[int, int]]:
        return {
            load["worker_id"]: (load["active_requests"], load["active_prefill_tokens"])
            for load in service.get("/loads")["workers"]
        }

    assert loads()[first["worker_id"]] == (1, 640)
    # Another prompt goes to the idle one; the same again to where it is believed to be.
    other = service.post("/select", {"token_ids": [7] * 40 * SIZE})
    assert other["worker_id"] != first["worker_id"]
    service.post("/reservations/a/prefill_complete")
    assert loads()[first["worker_id"]] == (1, 0)
    again = service.post("/select", {"token_ids": tokens})
    assert (again["worker_id"], again["overlap_blocks"]) == (first["worker_id"], 40)
    assert service.ask("DELETE", "/reservations/a").status_code == 200
    assert loads()[first["worker_id"]] == (0, 0)
    assert service.ask("DELETE", "/reservations/a").status_code == 404
    away = service.post("/select", {"token_ids": tokens, "excluded_workers": [first["worker_id"]]})
    assert away["worker_id"] != first["worker_id"]

    service.post("/select_and_reserve", {"token_ids": tokens, "ttl_seconds": 0.01})
    wait_until(lambda: service.get("/loads")["reservations"] == {"open": 0, "expired": 1}, "its expiry", service)
    potential = service.post("/potential_loads", {"token_ids": tokens})["workers"]
    assert {load["potential_decode_blocks"] for load in potential} == {40}

    for path, body, status in WRONG:
        assert service.ask("POST", path, body).status_code == status, (path, body)


WRONG = [
    ("/select", {"token_ids": []}, 400),
    ("/select", {}, 400),
    ("/select", {"token_ids": [1], "prompt": "a"}, 400),
    ("/select", {"token_ids": [-1]}, 400),
    ("/select", {"token_ids": [1], "modle": "m"}, 400),
    ("/select", {"token_ids": [1], "model": "other"}, 404),
    ("/select", {"prompt": "no tokenizer"}, 404),
    ("/select", {"token_ids": [1], "excluded_workers": ["nobody"]}, 404),
    ("/select_and_reserve", {"token_ids": [1], "reservation_id": "no spaces"}, 400),
    ("/workers", {"worker_id": "x"}, 400),
    ("/workers", {"worker_id": "x", "model": "m", "kv_events": {"endpoint": "ipc:///etc/passwd"}}, 400),
    ("/workers", {"worker_id": "x", "model": "m", "kv_events": {"endpoint": "tcp://nohost:99999"}}, 400),
    ("/workers", {"worker_id": "x", "model": "m", "dp_size": 9, "kv_events": {"endpoint": "tcp://h:65530"}}, 400),
    ("/reservations/nobody/prefill_complete", None, 404),
]


def test_text_is_tokenized_and_keys_are_asked_for(start, tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "packages/dynamo-core/src/dynamo/reference/demo_model"
    keys = tmp_path / "keys.yaml"
    keys.write_text("[{name: operator, key: sk-operator, admin: true}]")
    flags = ["--tokenizer", f"m={model}", "--api-key-file", str(keys)]
    service = start(*flags, env={"DYN_API_KEYS": "sk-select-1,sk-select-2"})
    assert service.ask("GET", "/workers").status_code == 401
    service.key = "sk-select-1"
    # Whoever registers makes the service connect to an address of theirs.
    assert service.ask("POST", "/workers", registration("one")).status_code == 403
    service.key = "sk-operator"
    service.post("/workers", registration("one"))
    service.key = "sk-select-1"
    assert service.ask("DELETE", "/workers/one").status_code == 403
    text = service.post("/select", {"prompt": "once upon a time"})
    assert text["prompt_tokens"] > 1
    chat = service.post("/select", {"messages": [{"role": "user", "content": "once upon a time"}]})
    assert chat["prompt_tokens"] > text["prompt_tokens"]
    kept = service.post("/select_and_reserve", {"prompt": "mine", "reservation_id": "a"})
    assert kept["reservation_id"] == "a"
    service.key = "sk-select-2"
    assert service.ask("DELETE", "/reservations/a").status_code == 404


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--workers-file", "/nowhere.yaml"], "cannot read the workers in /nowhere.yaml"),
        (["--tokenizer", "m=/nowhere"], "/nowhere"),
        (["--router-mode", "best"], "unknown router mode"),
    ],
)
def test_wrong_flags_stop_the_start(tmp_path: Path, flags: list[str], said: str) -> None:
    command = [sys.executable, "-m", "dynamo.frontend.select", "--http-port", "0", *flags]
    env = {**os.environ, "DYN_STATE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    assert done.returncode == EXIT_CONFIG, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
