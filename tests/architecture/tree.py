"""The source tree as data: what the architecture tests walk over."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMESPACES = sorted(ROOT.glob("packages/*/src/dynamo"))
PORTIONS = sorted(
    path for root in NAMESPACES for path in root.iterdir() if path.is_dir() and path.name != "__pycache__"
)
SOURCES = sorted(path for root in NAMESPACES for path in root.rglob("*.py"))
#: Tests, tools and benchmarks obey the size limits too.
EVERYTHING = sorted(
    [
        *SOURCES,
        ROOT / "noxfile.py",
        *ROOT.glob("packages/*/tests/**/*.py"),
        *(path for folder in ("benchmarks", "examples", "tests", "tools") for path in (ROOT / folder).rglob("*.py")),
    ]
)


def relative(path: Path) -> str:
    """The path as a test id."""
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """``dynamo.config.settings`` of ``packages/dynamo-core/src/dynamo/config/settings.py``."""
    parts = path.relative_to(next(root.parent for root in NAMESPACES if root in path.parents)).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"), str(path))
