"""Blocks in the docs are valid: Python compiles, YAML and JSON parse, graphs load, commands and their flags exist."""

import functools
import itertools
import json
import re
import shlex
import sys

import pytest
import yaml

from dynamo.graph import load_graphs
from tests.docs.pages import ROOT, Block, blocks
from tools.docs.cli import help_of, programs

PROGRAMS = {program for program in programs() if len(program) > 1}
_SEPARATORS = {"&&", "||", "|", ";", "&", ">", ">>", "2>&1"}


def each(*languages: str):
    return pytest.mark.parametrize("block", blocks(*languages), ids=lambda block: block.id)


@each("python")
def test_python_compiles(block: Block):
    assert compile(block.text, block.id, "exec") is not None


@each("json")
def test_json_parses(block: Block):
    assert json.loads(block.text) is not None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib: python3.11 or newer")
@each("toml")
def test_toml_parses(block: Block):
    import tomllib

    assert tomllib.loads(block.text)


@each("yaml")
def test_yaml_parses_and_graphs_load(block: Block):
    documents = list(yaml.safe_load_all(block.text))
    assert documents
    if any(isinstance(d, dict) and d.get("kind") == "DynamoGraphDeployment" for d in documents):
        assert all(document.warnings == [] for document in load_graphs(block.text, strict=True))


@each("console", "bash", "sh")
def test_commands_exist(block: Block):
    problems = [problem for line in _lines(block) for problem in _problems(line)]
    assert problems == []


@functools.cache
def _flags(program: tuple[str, ...]) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", help_of(program)))


@functools.cache
def _sessions() -> set[str]:
    return set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE))


def _lines(block: Block) -> list[str]:
    """The commands of a block, joined where they end in a backslash: of a console those after `$ `."""
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    if block.language == "console":
        return [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _problems(line: str) -> list[str]:
    words: list[str] = []
    found = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word in _SEPARATORS:
            found += _problems_of_command(words)
            words = []
        elif words or not re.match(r"[A-Z_]+=", word):
            words.append(word)
    return found


def _problems_of_command(words: list[str]) -> list[str]:
    """What does not exist of one command line; programs of others are not looked at."""
    if words[:1] == ["nox"]:
        asked = {re.split(r"[(-]", word)[0] for flag, word in itertools.pairwise(words) if flag == "-s"}
        return [f"no nox session {name}" for name in asked - _sessions()]
    for length in (3, 2):
        program = tuple(words[:length])
        if program in PROGRAMS:
            given = {word.split("=")[0] for word in words[length:] if word.startswith("-")}
            return [
                f"{' '.join(program)} has no {flag}" for flag in sorted(given - _flags(program) - _engine_flags(words))
            ]
    if words[:1] == ["dynamo"] and len(words) > 1 and not words[1].startswith("-"):
        return [f"no command dynamo {words[1]}"]
    if words[:2] == ["python3", "-m"] and words[2].startswith("dynamo."):
        return [f"no module {words[2]}"]
    return []


def _engine_flags(words: list[str]) -> set[str]:
    """A backend that is not ours may have any flag."""
    ours = {"echo", "reference"}
    backend = words[words.index("--backend") + 1] if "--backend" in words else "reference"
    return set() if backend in ours else {word.split("=")[0] for word in words if word.startswith("--")}
