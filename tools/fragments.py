"""Asks for a changelog fragment in each package whose sources changed, and only there.

`towncrier check` by itself does not look at paths: a change of one package would ask for a fragment in all of them.
`nox -s fragments -- BASE` runs it; BASE is the commit to compare with.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def git(*arguments: str) -> str:
    """What git prints; empty when it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def base_commit(asked: list[str]) -> str:
    """The commit where this work began: the argument, else the merge base with main, else the commit before.

    Raises:
        SystemExit: there is none.
    """
    head = git("rev-parse", "HEAD")
    for name in asked or ["origin/main", "main", "HEAD~1"]:
        base = git("merge-base", "HEAD", name)
        if base and (base != head or asked):
            return base
    raise SystemExit("nothing to compare with; say: nox -s fragments -- BASE")


def main() -> int:
    """Check each changed package; the number of those without a fragment decides the exit status."""
    base = base_commit(sys.argv[1:])
    changed = git("diff", "--name-only", base).splitlines()
    packages = sorted({path.split("/")[1] for path in changed if path.startswith("packages/") and "/src/" in path})
    missing = [
        package
        for package in packages
        if subprocess.run(
            ["towncrier", "check", "--dir", f"packages/{package}", "--compare-with", base], cwd=ROOT, check=False
        ).returncode
    ]
    if missing:
        print(f"add packages/PACKAGE/changelog.d/NAME.TYPE.md for: {', '.join(missing)}")
    else:
        print(f"changed packages since {base[:12]}: {', '.join(packages) or 'none'}; fragments are in place")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
