"""`__all__` is what a module offers: all that others import from it, nothing that is not there, nothing private.

That it is sorted is ruff's RUF022.
"""

import ast
import collections
import importlib
from pathlib import Path

import pytest

from tests.architecture.tree import SOURCES, module_name, parsed, relative

MODULES = {module_name(path): path for path in SOURCES}


def _imported_names() -> dict[str, set[str]]:
    """For each of our modules the names that other modules import from it, submodules left out."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module in MODULES:
                names = {alias.name for alias in node.names}
                found[node.module] |= {name for name in names if f"{node.module}.{name}" not in MODULES}
    return found


IMPORTED = _imported_names()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_what_others_import_is_exported(path: Path):
    imported = IMPORTED[module_name(path)]
    assert imported <= set(_declared(parsed(path)) or [])
    assert [name for name in imported if name.startswith("_")] == []


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stem != "__main__"], ids=relative)
def test_what_is_exported_exists(path: Path):
    declared = _declared(parsed(path)) or []
    module = importlib.import_module(module_name(path))
    assert [name for name in declared if not hasattr(module, name)] == []
    assert len(declared) == len(set(declared))


def test_public_portions_say_what_they_export():
    """A package whose `__init__` brings names has `__all__`."""
    silent = [
        relative(path)
        for path in SOURCES
        if path.stem == "__init__" and _declared(parsed(path)) is None and _brings_names(parsed(path))
    ]
    assert silent == []


def _brings_names(tree: ast.Module) -> bool:
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return any(
        (isinstance(node, ast.ImportFrom) and node.module != "__future__")
        or (isinstance(node, definitions) and not node.name.startswith("_"))
        for node in tree.body
    )


def _declared(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None
