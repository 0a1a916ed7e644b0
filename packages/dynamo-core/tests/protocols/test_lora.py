"""Names and numbers of adapters."""

from __future__ import annotations

import pytest

from dynamo.errors import InvalidRequest
from dynamo.protocols.lora import LORA_NAME_LIMIT, check_lora_name, lora_id_of


@pytest.mark.parametrize("name", ["a", "A9", "_x", "org/name", "a.b-c_d", "a@v1:2", "x" * LORA_NAME_LIMIT])
def test_names_that_may_be(name):
    check_lora_name(name)


@pytest.mark.parametrize("name", ["", "/", "a/", "/a", "a//b", "a/.b", "../a", "a b", "a\n", "é", "x" * 129])
def test_names_that_may_not_be(name):
    with pytest.raises(InvalidRequest, match="not a valid name"):
        check_lora_name(name)


def test_numbers_are_stable_positive_and_spread():
    assert lora_id_of("sql") == 1217503208
    numbers = {lora_id_of(str(number)) for number in range(10_000)}
    assert len(numbers) >= 9_999
    assert min(numbers) >= 1
    assert max(numbers) < 2**31
