"""What a start of vLLM puts into the environment, and that it goes again."""

from __future__ import annotations

import os

import pytest

from dynamo.vllm.start_environment import StartEnvironment


def test_the_users_variables_are_kept_or_come_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DYN_TEST_USERS", "user's")
    monkeypatch.setenv("DYN_TEST_REPLACED", "user's")
    monkeypatch.delenv("DYN_TEST_NEW", raising=False)
    before = dict(os.environ)
    with StartEnvironment() as environment:
        environment.add({"DYN_TEST_USERS": "ours", "DYN_TEST_NEW": "ours"})
        environment.put({"DYN_TEST_REPLACED": "ours"})
        environment.put({"DYN_TEST_REPLACED": "ours again"})
        names = ("DYN_TEST_USERS", "DYN_TEST_NEW", "DYN_TEST_REPLACED")
        assert [os.environ[name] for name in names] == ["user's", "ours", "ours again"]
    assert dict(os.environ) == before
