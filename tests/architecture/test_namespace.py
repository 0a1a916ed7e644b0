"""`dynamo` is a PEP 420 namespace that several distributions share; one stray file would hide all the others."""

from pathlib import Path

import pytest

from tests.architecture.tree import NAMESPACES, PORTIONS, SOURCES, relative


@pytest.mark.parametrize("namespace", NAMESPACES, ids=relative)
def test_no_file_lies_directly_in_the_namespace(namespace: Path):
    assert [path.name for path in namespace.iterdir() if path.is_file()] == []


@pytest.mark.parametrize("portion", PORTIONS, ids=relative)
def test_a_portion_is_a_typed_package(portion: Path):
    assert (portion / "py.typed").is_file()
    assert (portion / "__init__.py").is_file()


def test_folders_with_modules_are_packages():
    missing = {relative(path.parent) for path in SOURCES if not (path.parent / "__init__.py").is_file()}
    assert missing == set()


def test_two_packages_do_not_bring_the_same_portion():
    names = [portion.name for portion in PORTIONS]
    assert sorted(names) == sorted(set(names))
