"""What shows that the parameters of ``/v1/files`` and ``/v1/batches`` work."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.e2e.parameter_effects.api import MODEL, Api, Check

FILES, BATCHES = "/v1/files", "/v1/batches"
BATCH_SECONDS = 60.0
ENDED = ("completed", "failed", "expired", "cancelled")


def upload(api: Api, name: str = "input.jsonl", content: bytes | None = None, **fields: str) -> dict[str, Any]:
    row = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": MODEL, "prompt": "1 2 3"}}
    data = content if content is not None else json.dumps(row).encode()
    response = api.client.post(FILES, files={"file": (name, data)}, data={"purpose": "batch", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def create(api: Api, status: int = 200, **fields: Any) -> dict[str, Any]:
    body = {"endpoint": "/v1/completions", "completion_window": "24h", **fields}
    if "input_file_id" not in body:
        body["input_file_id"] = upload(api)["id"]
    response = api.client.post(BATCHES, json=body)
    assert response.status_code == status, response.text
    return response.json()


def ended(api: Api, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch at its end."""
    deadline = time.monotonic() + BATCH_SECONDS
    while batch["status"] not in ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
        batch = api.get(f"{BATCHES}/{batch['id']}")
    return batch


def file(api: Api) -> None:
    made = upload(api, "some.jsonl", b"{}\n")
    assert (made["filename"], made["bytes"]) == ("some.jsonl", 3)
    assert api.client.get(f"{FILES}/{made['id']}/content").content == b"{}\n"
    assert api.client.post(FILES, data={"purpose": "batch"}).status_code == 400


def purpose(api: Api) -> None:
    """At an upload, and as a filter of the list."""
    made = upload(api)
    assert made["purpose"] == "batch"
    refused = api.client.post(FILES, files={"file": ("f", b"{}")}, data={"purpose": "vision"})
    assert refused.json()["error"]["param"] == "purpose"
    assert made["id"] in [item["id"] for item in api.get(FILES, purpose="batch")["data"]]
    assert made["id"] not in [item["id"] for item in api.get(FILES, purpose="batch_output")["data"]]


def expires_after(api: Api) -> None:
    made = upload(api, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
    assert made["expires_at"] == made["created_at"] + 3600


def limit(api: Api) -> None:
    files = [upload(api)["id"] for _ in range(2)]
    page = api.get(FILES, limit=1)
    assert (len(page["data"]), page["has_more"]) == (1, True)
    assert files[0] in [item["id"] for item in api.get(FILES, limit=10_000)["data"]]
    for _ in range(2):
        create(api, input_file_id=files[0])
    page = api.get(BATCHES, limit=1)
    assert (len(page["data"]), page["has_more"]) == (1, True)
    assert api.client.get(BATCHES, params={"limit": 101}).status_code == 400


def order(api: Api) -> None:
    for _ in range(2):
        upload(api)
    up, down = ([item["id"] for item in api.get(FILES, order=way)["data"]] for way in ("asc", "desc"))
    assert up == down[::-1]
    assert len(up) > 1


def after(api: Api) -> None:
    first, second = (upload(api)["id"] for _ in range(2))
    assert api.get(FILES, order="desc", after=second)["data"][0]["id"] == first
    older, newer = (create(api, input_file_id=first)["id"] for _ in range(2))
    assert api.get(BATCHES, after=newer)["data"][0]["id"] == older


def input_file_id(api: Api) -> None:
    done = ended(api, create(api))
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 1, "completed": 1, "failed": 0})
    row = json.loads(api.client.get(f"{FILES}/{done['output_file_id']}/content").text)
    assert (row["custom_id"], row["response"]["status_code"]) == ("a", 200)
    assert row["response"]["body"]["choices"][0]["text"]
    assert create(api, 400, input_file_id="file-none")["error"]["param"] == "input_file_id"


def endpoint(api: Api) -> None:
    """Requests for another one fail the batch."""
    done = ended(api, create(api, endpoint="/v1/embeddings"))
    assert (done["status"], done["errors"]["data"][0]["line"]) == ("failed", 1)
    assert create(api, 400, endpoint="/v1/images")["error"]["param"] == "endpoint"


def completion_window(api: Api) -> None:
    made = create(api, completion_window="2h")
    assert made["expires_at"] - made["created_at"] == 7200
    assert create(api, 400, completion_window="soon")["error"]["param"] == "completion_window"


def metadata(api: Api) -> None:
    made = create(api, metadata={"a": "b"})
    assert api.get(f"{BATCHES}/{made['id']}")["metadata"] == {"a": "b"}


def output_expires_after(api: Api) -> None:
    done = ended(api, create(api, output_expires_after={"anchor": "created_at", "seconds": 3600}))
    output = api.get(f"{FILES}/{done['output_file_id']}")
    assert output["expires_at"] == output["created_at"] + 3600


CHECKS: dict[str, Check] = {
    "file": file,
    "purpose": purpose,
    "expires_after[anchor]": expires_after,
    "expires_after[seconds]": expires_after,
    "limit": limit,
    "order": order,
    "after": after,
    "input_file_id": input_file_id,
    "endpoint": endpoint,
    "completion_window": completion_window,
    "metadata": metadata,
    "output_expires_after": output_expires_after,
}
