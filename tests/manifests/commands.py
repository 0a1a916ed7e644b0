"""Finds what the containers of a manifest run: lists, shell scripts, and args alone; in any kind of object."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dynamo.graph.command import expand

_MODULE = re.compile(r"dynamo\.\w+\Z")
_SHELL_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
#: Where a shell's command ends.
_ENDS = {"&&", "||", ";", "|", "&", ">", "2>&1"}


class Command(NamedTuple):
    """One ``python3 -m dynamo.MODULE ARGUMENTS`` with the variables that the container sets."""

    origin: str
    module: str
    arguments: list[str]
    environment: dict[str, str]


def commands(path: Path) -> list[Command]:
    """All that the objects in `path` run of ours."""
    with path.open() as file:
        documents = [document for document in yaml.safe_load_all(file) if isinstance(document, dict)]
    return [
        Command(f"{path.name} {where}", *found)
        for document in documents
        for where, container, framework, environment in _containers(document, "", "", {})
        for found in _commands(container, framework, environment)
    ]


def _containers(
    node: Any, where: str, framework: str, environment: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any], str, dict[str, str]]]:
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _containers(item, f"{where}[{index}]", framework, environment)
    if not isinstance(node, dict):
        return
    framework = node.get("backendFramework", framework)
    role = str(node.get("componentType", ""))
    framework = "frontend" if role == "frontend" else framework
    named = node.get("envs") or node.get("env") or []
    here = {**environment, **{each["name"]: str(each.get("value", "")) for each in named if isinstance(each, dict)}}
    if isinstance(node.get("command") or node.get("args"), (list, str)):
        yield where, node, framework, here
    for key, value in node.items():
        if key not in ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle"):
            yield from _containers(value, f"{where}.{key}".lstrip("."), framework, here)


def _commands(
    container: Mapping[str, Any], framework: str, environment: dict[str, str]
) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    words = [*_words(container.get("command")), *_words(container.get("args"))]
    words = [expand(word, environment) for word in words]
    if words and words[0].startswith("-") and words[0] != "-m" and framework:
        yield f"dynamo.{framework}", words, environment
    scripts = [word for word in words if "-m dynamo." in word]
    for script in scripts:
        substituted = _SHELL_VARIABLE.sub(lambda found: environment.get(found[1], found[0]), script)
        yield from _modules(shlex.split(substituted.replace("\\\n", " "), comments=True), environment)
    yield from _modules(words, environment)


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(word) for word in value or []]


def _modules(words: list[str], environment: dict[str, str]) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    for index, word in enumerate(words):
        if word == "-m" and index + 1 < len(words) and _MODULE.match(words[index + 1]):
            rest = words[index + 2 :]
            end = next((position for position, each in enumerate(rest) if each in _ENDS), len(rest))
            yield words[index + 1], rest[:end], environment
