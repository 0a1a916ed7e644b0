"""The whole contract of an engine, in one test."""

from __future__ import annotations

from my_backend.engine import ReverseEngine

from dynamo.testing.engine_conformance import run_engine_conformance


def test_contract() -> None:
    run_engine_conformance(ReverseEngine).raise_for_failures()
