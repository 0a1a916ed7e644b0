"""Writes the pages of docs/reference, and what the code reads of them, from the code, or says which differ.

`nox -s docs` and `nox -s tests` call it with `--check`; `nox -s docs -- --write` writes.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import page as benchmarks_page
from tools.docs import cli, errors, hooks, settings

__all__ = ["PAGES", "main", "stale_pages"]

ROOT = Path(__file__).parents[2]
REFERENCE = "docs/reference"
PAGES: dict[str, Callable[[], str]] = {
    f"{REFERENCE}/settings.md": settings.page,
    f"{REFERENCE}/hooks.md": hooks.page,
    f"{REFERENCE}/cli.md": cli.page,
    f"{REFERENCE}/errors.md": errors.page,
    f"{REFERENCE}/benchmarks.md": benchmarks_page.page,
    "packages/dynamo-core/src/dynamo/config/variables.txt": settings.variables,
}


def stale_pages() -> dict[str, str]:
    """A diff for every page that is not what the code generates, by path."""
    found = {}
    for name, page in PAGES.items():
        path = ROOT / name
        old = path.read_text("utf-8") if path.exists() else ""
        new = page()
        if old != new:
            lines = difflib.unified_diff(old.splitlines(), new.splitlines(), str(path), "generated", lineterm="", n=1)
            found[name] = "\n".join(lines)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or with ``--check`` return 1 when one is stale."""
    parser = argparse.ArgumentParser(description="Reference pages, generated from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is stale")
    if not parser.parse_args(arguments).check:
        (ROOT / REFERENCE).mkdir(parents=True, exist_ok=True)
        for name, page in PAGES.items():
            (ROOT / name).write_text(page(), "utf-8")
        return 0
    stale = stale_pages()
    for name, diff in stale.items():
        print(f"{name} is stale:\n{diff}\n")
    if stale:
        print("write them with: nox -s docs -- --write")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
