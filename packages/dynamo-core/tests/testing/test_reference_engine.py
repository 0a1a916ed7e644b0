"""The reference engine with the packaged demo model keeps the engine contract, under eviction too."""

from __future__ import annotations

from dynamo.protocols.engine import EngineOptions
from dynamo.reference.engine import ReferenceEngine
from dynamo.testing.engine_conformance import run_engine_conformance


def test_the_reference_engine_keeps_the_contract() -> None:
    options = EngineOptions(argv=("--num-blocks", "192", "--max-model-len", "512"))
    report = run_engine_conformance(ReferenceEngine, options)
    report.raise_for_failures()
    assert {"events.eviction", "events.agree", "resume.usage", "cancel.storm"} <= set(report.named("ok"))
