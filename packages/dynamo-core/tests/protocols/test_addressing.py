"""Names of endpoints and instances."""

from __future__ import annotations

import json

import pytest

from dynamo.errors import ConfigError
from dynamo.protocols.addressing import EndpointAddress, WorkerKey, format_instance_id, new_instance_id


def test_an_address_is_read_with_and_without_scheme_and_written_with_it():
    address = EndpointAddress("prod", "backend", "generate")
    assert EndpointAddress.parse("dyn://prod.backend.generate") == address
    assert EndpointAddress.parse("prod.backend.generate") == address
    assert EndpointAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prod.backend", "has 2 parts"),
        ("prod.backend.generate.x", "has 4 parts"),
        ("", "has 1 parts"),
        ("prod..generate", "component ''"),
        ("-prod.backend.generate", "namespace '-prod'"),
        ("prod.backend.generate\n", r"endpoint 'generate\\n'"),
        ("prod.back/end.generate", "component 'back/end'"),
        ("prod.backend.généré", "endpoint 'généré'"),
        (f"{'n' * 64}.b.g", "namespace 'nnn"),
    ],
)
def test_a_malformed_address_names_the_part(text, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        EndpointAddress.parse(text)
    assert caught.value.hint


def test_the_longest_names():
    assert EndpointAddress.of("n" * 63, "a", "b_-c").namespace == "n" * 63


def test_instance_ids_survive_json_in_a_double():
    ids = {new_instance_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(0 <= i < 2**53 and int(float(json.loads(json.dumps(i)))) == i for i in ids)


def test_instance_ids_are_shown_with_a_fixed_width():
    assert format_instance_id(0) == "0" * 14
    assert format_instance_id(2**53 - 1) == "1fffffffffffff"


def test_worker_keys_sort_by_instance_then_rank():
    assert WorkerKey(5) == (5, 0)
    assert sorted([WorkerKey(2, 0), WorkerKey(1, 1), WorkerKey(1, 0)]) == [(1, 0), (1, 1), (2, 0)]
