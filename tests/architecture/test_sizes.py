"""Files stay below 500 lines; a function above 80 says why in a comment `# Long: ...` right above it."""

import ast
from pathlib import Path

import pytest

from tests.architecture.tree import EVERYTHING, parsed, relative

FILE_LINES = 500
FUNCTION_LINES = 80


@pytest.mark.parametrize("path", EVERYTHING, ids=relative)
def test_sizes(path: Path):
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= FILE_LINES
    assert _long_functions(path, lines) == []


def _long_functions(path: Path, lines: list[str]) -> list[str]:
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            excused = first >= 2 and lines[first - 2].strip().startswith("# Long: ")
            if (node.end_lineno or first) - first + 1 > FUNCTION_LINES and not excused:
                found.append(f"{node.name} (line {node.lineno})")
    return found
