"""The engine that docs/how-to/write-a-backend.md shows keeps the whole contract."""

from dynamo.testing.engine_conformance import run_engine_conformance
from tests.docs.pages import ROOT, blocks_of


def test_the_engine_of_the_how_to_conforms():
    page = ROOT / "docs" / "how-to" / "write-a-backend.md"
    source = next(block.text for block in blocks_of(page) if block.language == "python")
    module: dict[str, object] = {"__name__": "reverse_backend.engine"}
    exec(compile(source, str(page), "exec"), module)
    report = run_engine_conformance(module["ReverseEngine"])
    report.raise_for_failures()
    assert report.passed
