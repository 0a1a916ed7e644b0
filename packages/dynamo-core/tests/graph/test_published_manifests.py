"""Manifests that users of released versions have; given by a directory, skipped without one."""

import os
import re
from pathlib import Path

import pytest

from dynamo.graph import load_graphs, resolve_components

DIRECTORY = Path(os.environ.get("DYNAMO_MANIFESTS") or Path(__file__).parents[4].parent / "shared" / "manifests")
FILES = [
    path
    for path in sorted(DIRECTORY.rglob("*.yaml"))
    if "DynamoGraphDeployment" in (re.findall(r"^kind: *(\S+)", path.read_text("utf-8"), re.MULTILINE))
]


@pytest.mark.skipif(not FILES, reason="set DYNAMO_MANIFESTS to a directory of DynamoGraphDeployment files")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_loads_and_resolves(path):
    for document in load_graphs(path):
        services = document.graph.spec.services
        resolution = resolve_components(document.graph)
        run = {component.name: component for component in resolution.components}
        assert {name for name, service in services.items() if service.component_type != "epp"} <= set(run)
        assert all(component.argv for component in run.values())
        frontends = [" ".join(component.argv) for component in run.values() if component.kind == "frontend"]
        assert not frontends or any("dynamo.frontend" in command for command in frontends)
