"""What shows that the fields of ``nvext`` work, at chats and completions alike."""

from __future__ import annotations

import uuid
from typing import Any

from tests.e2e.parameter_effects.api import MODEL, OSLO, Api, Dialect, SharedCheck
from tests.e2e.parameter_effects.sampling import GRAMMARS, follows, ignored, keeps_apart, overtakes

IGNORED = {
    "use_raw_prompt": True,
    "prefill_worker_id": 1,
    "max_thinking_tokens": 10,
    "agent_context": {"a": 1},
    "session_control": {"a": 1},
}


def backend_instance_id(api: Api, dialect: Dialect) -> None:
    _chooses(api, dialect, "backend_instance_id")


def decode_worker_id(api: Api, dialect: Dialect) -> None:
    _chooses(api, dialect, "decode_worker_id")


def dp_rank(api: Api, dialect: Dialect) -> None:
    worker = _worker(api, dialect)
    told = _ask(api, dialect, backend_instance_id=worker, dp_rank=0, extra_fields=["worker_id"])
    assert told["nvext"]["worker_id"]["decode_dp_rank"] == 0
    nvext = {"backend_instance_id": worker, "dp_rank": 3}
    api.refusal(dialect.path, 503, **dialect.prompt("x"), nvext=nvext)


def token_data(api: Api, dialect: Dialect) -> None:
    ids = api.post("/tokenize", messages=[{"role": "user", "content": "What is the capital of Norway?"}])["tokens"]
    assert dialect.ask(api, "something else", nvext={"token_data": ids}).text == OSLO


def greed_sampling(api: Api, dialect: Dialect) -> None:
    texts = {
        dialect.ask(api, dialect.story, temperature=2, nvext={"greed_sampling": True}, **{dialect.limit: 24}).text
        for _ in range(2)
    }
    assert texts == {dialect.ask(api, dialect.story, **{dialect.limit: 24}).text}


def cache_salt(api: Api, dialect: Dialect) -> None:
    keeps_apart(api, dialect, lambda salt: {"nvext": {"cache_salt": salt}})
    # The parameter beside it counts more.
    one = uuid.uuid4().hex
    keeps_apart(api, dialect, lambda salt: {"cache_salt": salt, "nvext": {"cache_salt": one}})


def agent_hints(api: Api, dialect: Dialect) -> None:
    def hints(priority: int) -> dict[str, Any]:
        return {"nvext": {"agent_hints": {"priority": priority, "osl": 30, "strict_priority": 1}}}

    # Higher is sooner here.
    overtakes(api, dialect, hints(-5), hints(5))


def annotations(api: Api, dialect: Dialect) -> None:
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": 2,
        "nvext": {"annotations": ["formatted_prompt", "token_ids"]},
    }
    text = api.client.post(dialect.path, json={**body, **dialect.prompt("hello")}).text
    assert [event.split("\n")[0] for event in text.split("\n\n")[:2]] == ["event: formatted_prompt", "event: token_ids"]


def extra_fields(api: Api, dialect: Dialect) -> None:
    told = _ask(api, dialect, extra_fields=["worker_id", "timing", "unknown"])["nvext"]
    assert set(told) == {"worker_id", "timing"}
    assert 0 < told["timing"]["ttft_ms"] <= told["timing"]["total_time_ms"]
    assert "nvext" not in _ask(api, dialect)


def router(api: Api, dialect: Dialect) -> None:
    """Its effect on the choice is tested with several workers in the core's tests; here there is one."""
    assert _ask(api, dialect, router={"overlap_score_credit": 0.5, "temperature": 0})["choices"]
    wrong = {"router": {"temperature": -1}}
    assert api.refusal(dialect.path, **dialect.prompt("x"), nvext=wrong) == "nvext.router.temperature"


def explain(api: Api, dialect: Dialect) -> None:
    routing = _ask(api, dialect, explain=True)["nvext"]["routing"]
    assert [candidate["chosen"] for candidate in routing["candidates"]] == [True]


def _chooses(api: Api, dialect: Dialect, field: str) -> None:
    worker = _worker(api, dialect)
    for name in (worker, f"{worker:014x}"):
        told = _ask(api, dialect, **{field: name}, extra_fields=["worker_id"])
        assert told["nvext"]["worker_id"]["decode_worker_id"] == worker
    api.refusal(dialect.path, 503, **dialect.prompt("x"), nvext={field: 12345})


def _worker(api: Api, dialect: Dialect) -> int:
    return _ask(api, dialect, extra_fields=["worker_id"])["nvext"]["worker_id"]["decode_worker_id"]


def _ask(api: Api, dialect: Dialect, **nvext: Any) -> dict[str, Any]:
    return dialect.ask(api, dialect.story, nvext=nvext).body


def _guided(kind: str) -> SharedCheck:
    def check(api: Api, dialect: Dialect) -> None:
        follows(api, dialect, kind, lambda value: {"nvext": {f"guided_{kind}": value}})

    return check


def _ignored(name: str, value: Any) -> SharedCheck:
    return ignored("nvext", {name: value})


SHARED: dict[str, SharedCheck] = {
    "backend_instance_id": backend_instance_id,
    "decode_worker_id": decode_worker_id,
    "dp_rank": dp_rank,
    "token_data": token_data,
    "greed_sampling": greed_sampling,
    "cache_salt": cache_salt,
    "agent_hints": agent_hints,
    "annotations": annotations,
    "extra_fields": extra_fields,
    "router": router,
    "explain": explain,
    **{f"guided_{kind}": _guided(kind) for kind in GRAMMARS},
    **{name: _ignored(name, value) for name, value in IGNORED.items()},
}
