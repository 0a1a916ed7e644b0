"""The error tree: what travels, what clients see, and the drawing that readers trust."""

from __future__ import annotations

import json
import re

import msgspec
import pytest

from dynamo import errors
from dynamo.errors import DynamoError, EngineError, PluginConflict, PluginError, RateLimited, Retry, error_from_wire

CLASSES = [getattr(errors, name) for name in errors.__all__ if name not in ("Retry", "error_from_wire")]


def drawn_tree() -> dict[str, tuple[str, str | None, str | None]]:
    """Class name to (parent, status, retry) as the module docstring draws them; None where it says nothing."""
    drawn: dict[str, tuple[str, str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r" {4}([│├└─ ]*)([A-Z]\w+)(?:\s+(\d{3}))?(?:\s+(never|same worker|other worker))?", line)
        if match is None:
            continue
        prefix, name, status, retry = match.groups()
        depth = len(prefix) // 4
        path[depth:] = [name]
        drawn[name] = (path[depth - 1] if depth else "Exception", status, retry)
    return drawn


DRAWN = drawn_tree()


def test_the_drawing_has_every_class_and_no_other():
    assert set(DRAWN) == {cls.__name__ for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_drawing_tells_the_truth(cls: type[DynamoError]):
    parent, status, retry = DRAWN[cls.__name__]
    assert cls.__mro__[1].__name__ == parent
    inherited = getattr(errors, parent, DynamoError)
    assert cls.http_status == (int(status) if status else inherited.http_status)
    assert cls.retry == (Retry(retry.replace(" ", "_")) if retry else inherited.retry)


def test_codes_are_unique_and_stable_strings():
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_survives_the_wire(cls: type[DynamoError]):
    sent = cls(
        "what happened",
        param="max_tokens",
        hint="ask for less",
        reason="context_length_exceeded",
        retry_after_seconds=1.5,
        details={"limit": 3},
        origin="10.0.0.1:5",
    )
    got = error_from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(sent.to_wire())))
    assert type(got) is cls
    assert vars(got) == vars(sent)
    assert str(got) == str(sent)


def test_what_is_not_set_does_not_travel():
    assert RateLimited("slow down").to_wire() == {"code": "rate_limited", "message": "slow down", "retry": "never"}


def test_an_unknown_code_is_an_engine_error_that_nobody_retries():
    got = error_from_wire({"code": "from_the_future", "message": "m", "retry": "other_worker"}, origin="peer")
    assert type(got) is EngineError
    assert (got.message, got.retry, got.origin) == ("m", Retry.NEVER, "peer")


@pytest.mark.parametrize(
    "wire", [{}, {"code": None}, {"code": ["list"]}, {"retry_after_seconds": "soon", "details": [1], "code": 5}]
)
def test_a_malformed_error_frame_is_still_an_error(wire):
    got = error_from_wire(wire)
    assert type(got) is EngineError
    assert (got.message, got.retry_after_seconds, got.details) == ("unknown error", None, {})


def test_the_sender_knows_better_than_the_receiver_who_raised_it():
    assert error_from_wire({"code": "draining", "origin": "engine"}, origin="peer").origin == "engine"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_clients_get_the_body_of_openai(cls: type[DynamoError]):
    body = json.loads(json.dumps(cls("what", param="model", hint="how to fix").to_openai()))
    assert body == {
        "error": {"message": "what\nhow to fix", "type": cls.openai_type, "param": "model", "code": cls.code}
    }


def test_the_reason_is_the_code_that_openai_clients_look_for():
    error = errors.InvalidRequest("too long", reason="context_length_exceeded")
    assert error.to_openai()["error"] == {
        "message": "too long",
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
    }


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_openai_type_fits_the_status(cls: type[DynamoError]):
    client_errors = {"invalid_request_error", "authentication_error", "rate_limit_error"}
    if cls is not errors.Cancelled:  # 499 is the client's doing, but nobody reads the answer
        assert (cls.openai_type in client_errors) == (400 <= cls.http_status < 500)


def test_details_are_copied():
    details = {"a": 1}
    error = DynamoError("m", details=details)
    details["a"] = 2
    assert error.details == {"a": 1}


def test_a_family_is_caught_by_its_parent():
    with pytest.raises(PluginError):
        raise PluginConflict("two")
