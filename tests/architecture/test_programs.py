"""`python3 -m dynamo.<x> --help` and `dynamo <command> --help` work without any engine."""

import subprocess
import sys

import pytest

from dynamo.plugins import plugins
from tests.architecture.tree import NAMESPACES

MODULES = sorted(path.parent.name for root in NAMESPACES for path in root.glob("*/__main__.py"))
COMMANDS = sorted(name for name, entry in plugins().commands.items() if entry.distribution == "dynamo-core")
#: Users' manifests run these.
PROMISED = {"frontend", "worker", "reference", "echo"}


def test_the_promised_modules_run():
    assert set(MODULES) >= PROMISED


@pytest.mark.parametrize("module", MODULES)
def test_module_help(module: str):
    assert "--help" in _output(["-m", f"dynamo.{module}", "--help"])


@pytest.mark.parametrize("command", COMMANDS)
def test_command_help(command: str):
    assert "--help" in _output(["-m", "dynamo.cli", command, "--help"])


def _output(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
