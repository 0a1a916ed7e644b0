"""Messages besides the request plane's frames: those of earlier versions are read here, and ours by their rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from dynamo.runtime.request_plane.nats_transport import Envelope
from tests.wire.player import covers
from tools.wire.messages import CHANNEL, FORMATS, SAMPLES, Recorded
from tools.wire.record import RECORDINGS
from tools.wire.session import SECRET

TYPES = {type(value).__name__: type(value) for value, _ in SAMPLES}


#: Fields whose keys are not names of fields.
MAPS_OF_DATA = {"transports", "metadata", "artifacts", "logit_bias", "kv_transfer_params", "trace"}


def _recordings() -> Iterator[Any]:
    for folder in sorted(RECORDINGS.iterdir()):
        for number, line in enumerate((folder / "messages.jsonl").read_bytes().splitlines()):
            message = msgspec.json.decode(line, type=Recorded)
            yield pytest.param(message, id=f"{folder.name}-{number}-{message.name}")


ALL = list(_recordings())
RECORDED = [param for param in ALL if param.values[0].form in FORMATS]
SEALED = [param for param in ALL if param.values[0].form == "nats"]


def with_unknown_fields(message: Any, *, data: bool = False) -> Any:
    """As a later minor version might send it: every map has one field more, unless its keys are `data`."""
    if isinstance(message, list):
        return [with_unknown_fields(part) for part in message]
    if not isinstance(message, dict):
        return message
    grown = {key: with_unknown_fields(value, data=key in MAPS_OF_DATA) for key, value in message.items()}
    return grown if data else {**grown, "field_of_a_later_version": [1, {"a": None}]}


def test_the_recordings_have_what_crosses_versions():
    names = {param.values[0].name for param in RECORDED}
    assert names >= {"ModelDeploymentCard", "InstanceRecord", "KvEventBatch", "KvSnapshotRequest", "WorkerLoad"}
    assert names <= TYPES.keys()


@pytest.mark.parametrize("recorded", RECORDED)
def test_a_recorded_message_is_read_here_as_it_was_meant(recorded):
    value = FORMATS[recorded.form].decode(bytes.fromhex(recorded.data), type=TYPES[recorded.name])
    # Through JSON, as the recording went.
    read = msgspec.json.decode(msgspec.json.encode(value))
    assert covers(read, recorded.reads)


@pytest.mark.parametrize("recorded", RECORDED)
def test_todays_form_of_it_says_the_same_to_who_knows_only_its_fields(recorded):
    form, data = FORMATS[recorded.form], bytes.fromhex(recorded.data)
    value = form.decode(data, type=TYPES[recorded.name])
    assert covers(form.decode(form.encode(value)), form.decode(data))


@pytest.mark.parametrize("recorded", RECORDED)
def test_fields_of_a_later_version_are_ignored(recorded):
    form, data = FORMATS[recorded.form], bytes.fromhex(recorded.data)
    kind = TYPES[recorded.name]
    grown = form.encode(with_unknown_fields(form.decode(data)))
    assert b"field_of_a_later_version" in grown
    assert form.decode(grown, type=kind) == form.decode(data, type=kind)


@pytest.mark.parametrize("recorded", SEALED)
def test_a_recorded_message_over_nats_is_opened_here_and_sealed_alike(recorded):
    kind, number, data = recorded.reads
    message = bytes.fromhex(recorded.data)
    assert Envelope(SECRET, CHANNEL, asking=False).open(message) == (kind, number, bytes.fromhex(data))
    assert Envelope(SECRET, CHANNEL, asking=True).seal(kind, number, bytes.fromhex(data)) == message
    assert Envelope(b"another", CHANNEL, asking=False).open(message) is None


def test_every_recording_has_messages_over_nats():
    assert len(SEALED) >= 4 * len(list(RECORDINGS.iterdir()))
