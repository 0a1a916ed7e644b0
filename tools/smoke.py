"""Imports every module that an installed distribution brings, and runs its programs' help.

`nox -s "alone(PACKAGE)"` runs it in an environment that holds nothing but the package and its declared dependencies.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path


def modules(distribution: str) -> list[str]:
    """Dotted names of the distribution's modules.

    Raises:
        SystemExit: it is not installed, or installed as editable, where nothing can be listed.
    """
    files = importlib.metadata.files(distribution) or []
    paths = [Path(str(file)) for file in files if file.suffix == ".py" and str(file).startswith("dynamo/")]
    if not paths:
        raise SystemExit(f"{distribution}: no modules; is it installed, and not as editable?")
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return sorted(names)


def scripts(distribution: str) -> list[str]:
    """The distribution's console scripts, beside this interpreter."""
    points = importlib.metadata.distribution(distribution).entry_points
    return [str(Path(sys.executable).with_name(p.name)) for p in points if p.group == "console_scripts"]


def main() -> int:
    """Import and run; print what fails."""
    names = modules(sys.argv[1])
    failures = []
    for name in names:
        if not name.endswith(".__main__"):
            try:
                importlib.import_module(name)
            except ImportError as error:
                failures.append(f"import {name}: {error}")
    programs = [[sys.executable, "-m", name.removesuffix(".__main__")] for name in names if name.endswith(".__main__")]
    programs += [[script] for script in scripts(sys.argv[1])]
    for program in programs:
        done = subprocess.run([*program, "--help"], capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            failures.append(f"{' '.join(program)} --help: {done.stderr.strip()}")
    print("\n".join(failures) or f"{len(names)} modules import, {len(programs)} programs answer")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
