from pathlib import Path

import pytest

from dynamo.graph import load_graphs, resolve_components

EXAMPLES = sorted((Path(__file__).parents[4] / "examples").glob("*/graph.yaml"))


@pytest.mark.skipif(not EXAMPLES, reason="the examples are in the repository, not in the distribution")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_examples_have_no_warning_and_say_what_to_run(path):
    (document,) = load_graphs(path)
    assert document.warnings == []
    components = resolve_components(document.graph).components
    assert [component.name for component in components] == list(document.graph.spec.services)
