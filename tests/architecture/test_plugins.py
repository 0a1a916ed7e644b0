"""Plugins: light to list, and whatever they name exists."""

import ast
import importlib.metadata
import json
import subprocess
import sys

import pytest

from dynamo.hookspecs import PROJECT_NAME
from dynamo.plugins.loading import Plugins, load_plugins, plugins
from dynamo.plugins.registry import import_target
from tests.architecture.tree import NAMESPACES, parsed, relative

#: What makes a start slow, or belongs to one engine.
HEAVY = {
    "huggingface_hub",
    "httpx",
    "jinja2",
    "numpy",
    "openai",
    "prometheus_client",
    "pydantic",
    "sglang",
    "tensorrt_llm",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
}
_OURS = {path.parents[1].name for path in NAMESPACES}
PLUGIN_MODULES = [
    "dynamo.plugins.builtin",
    *sorted(
        point.value
        for point in importlib.metadata.entry_points(group=PROJECT_NAME)
        if point.dist is not None and point.dist.metadata["Name"] in _OURS
    ),
]


@pytest.fixture(scope="module")
def loaded() -> Plugins:
    return plugins()


@pytest.mark.parametrize("module", PLUGIN_MODULES)
def test_a_plugin_module_imports_nothing_heavy(module: str):
    assert _heavy_after(f"import {module}") == set()


def test_listing_plugins_imports_nothing_heavy():
    assert _heavy_after("from dynamo.plugins import plugins; plugins()") == set()


def test_help_imports_nothing_heavy():
    code = """
import sys
from dynamo.cli import main
sys.argv = ["dynamo", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""
    assert _heavy_after(code) == set()


def test_every_registered_import_string_resolves(loaded: Plugins):
    targets = {
        f"{registry.kind} {entry.name}": entry.target
        for registry in loaded.registries()
        for entry in registry
        if entry.distribution in _OURS and isinstance(entry.target, str)
    }
    commands = loaded.commands.values()
    targets |= {
        f"command {c.name}": c.target for c in commands if c.distribution in _OURS and isinstance(c.target, str)
    }
    broken = {}
    for name, target in targets.items():
        try:
            import_target(target)
        except ImportError as error:
            broken[name] = str(error)
    assert targets
    assert broken == {}


def test_our_plugins_are_healthy(loaded: Plugins):
    assert {r.name: r.error for r in loaded.reports if r.distribution in _OURS and not r.healthy} == {}


def test_without_sources_nothing_is_registered():
    assert [list(registry) for registry in load_plugins([]).registries()] == [[]] * len(Plugins().registries())


def test_the_cli_names_no_plugin():
    """They come through entry points; import-linter cannot name portions that are not in the tree yet."""
    forbidden = {f"dynamo.{name}" for name in ("vllm", "sglang", "trtllm", "k8s", "planner", "testing")}
    found = {}
    for path in sorted(NAMESPACES[0].glob("cli/**/*.py")):
        imports = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom)]
        names = {node.module for node in imports if node.module}
        found[relative(path)] = sorted(n for n in names if any(n == f or n.startswith(f + ".") for f in forbidden))
    assert {path: names for path, names in found.items() if names} == {}


def _heavy_after(code: str) -> set[str]:
    script = f"{code}\nimport sys, json; sys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return HEAVY & set(json.loads(done.stderr.splitlines()[-1]))
