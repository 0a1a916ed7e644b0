"""Gets the servers that tests start: etcd, etcdctl and nats-server.

    python tools/servers/install.py [--into DIRECTORY] [NAME ...]

What is on PATH is used as it is. The rest comes from Debian's packages, unpacked into a directory, so that neither
root nor a running service is needed. Prints the directory; `dynamo.testing.servers` looks there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: Program -> the Debian (and Ubuntu) package that brings it.
PACKAGES = {"etcd": "etcd-server", "etcdctl": "etcd-client", "nats-server": "nats-server"}
DEFAULT_DIRECTORY = Path(__file__).parents[2] / ".nox" / "servers"
_SECONDS = 300


def main(arguments: list[str] | None = None) -> int:
    """Install what is missing; 1 if something could not be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGES)}; default: all")
    parser.add_argument("--into", type=Path, default=DEFAULT_DIRECTORY, metavar="DIRECTORY")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - PACKAGES.keys():
        parser.error(f"cannot install {', '.join(sorted(unknown))}; known: {', '.join(PACKAGES)}")
    directory: Path = options.into.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in options.names or PACKAGES:
        try:
            found = installed(name, directory) or install(name, directory)
        except (OSError, subprocess.SubprocessError) as error:
            failed = True
            print(f"{name}: {_reason(error)}", file=sys.stderr)
        else:
            print(f"{name}: {found}", file=sys.stderr)
    print(directory)
    return int(failed)


def installed(name: str, directory: Path) -> Path | None:
    """Where program `name` is already, if anywhere."""
    on_path = shutil.which(name)
    if on_path:
        return Path(on_path)
    return directory / name if os.access(directory / name, os.X_OK) else None


def install(name: str, directory: Path) -> Path:
    """Put program `name` into `directory`, and nothing else of its package.

    Raises:
        FileNotFoundError: this machine has no apt-get or dpkg, or the package has no such program.
        CalledProcessError: the package cannot be downloaded or unpacked.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(None, f"{tool} is not on this machine; install {name} and put it on PATH")
    with tempfile.TemporaryDirectory(dir=directory, prefix=".unpack-") as temporary:
        workplace = Path(temporary)
        _download(PACKAGES[name], workplace)
        for archive in workplace.glob("*.deb"):
            _run("dpkg", "-x", str(archive), str(workplace / "root"))
        programs = [path for path in workplace.glob(f"root/usr/*bin/{name}") if path.is_file()]
        if not programs:
            raise FileNotFoundError(None, f"Debian's {PACKAGES[name]} has no program {name}")
        return programs[0].replace(directory / name)


def _download(package: str, into: Path) -> None:
    try:
        _run("apt-get", "download", package, cwd=into)
    except subprocess.CalledProcessError:
        if os.geteuid() != 0:
            raise
        # A fresh container has no package lists.
        _run("apt-get", "update")
        _run("apt-get", "download", package, cwd=into)


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=_SECONDS)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        hint = "" if os.geteuid() == 0 else "\n(if package lists are missing: sudo apt-get update)"
        return f"{' '.join(error.cmd)} failed: {error.stderr.strip()}{hint}"
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)


if __name__ == "__main__":
    sys.exit(main())
