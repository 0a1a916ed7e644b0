from pathlib import Path

import pytest

from dynamo.graph import load_graphs, resolve_components


@pytest.fixture
def data():
    """Directory of this package's own manifests."""
    return Path(__file__).parent / "data"


@pytest.fixture
def load(data):
    """``load(name)`` gives the one graph of a manifest as a GraphDocument."""

    def one(name):
        (document,) = load_graphs(data / f"{name}.yaml")
        return document

    return one


@pytest.fixture
def resolve(load):
    """``resolve(name, **base_env)`` gives components by name, and the notes."""

    def run(name, **base_env):
        resolution = resolve_components(load(name).graph, base_env=base_env)
        return {component.name: component for component in resolution.components}, resolution.notes

    return run
