"""The engine contract (`dynamo.protocols.engine.LLMEngine`, DESIGN 4.1 and 4.2) as checks.

In the test suite of a backend::

    from dynamo.testing.engine_conformance import run_engine_conformance

    def test_contract() -> None:
        run_engine_conformance(MyEngine).raise_for_failures()

At a terminal: ``dynamo conformance engine my-backend -- --engine-flag value``.
"""

from dynamo.testing.engine_conformance.driver import SuiteSettings
from dynamo.testing.engine_conformance.suite import engine_checks, engine_report, run_engine_conformance

__all__ = ["SuiteSettings", "engine_checks", "engine_report", "run_engine_conformance"]
