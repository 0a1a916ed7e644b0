"""Plugins as they come: modules made in a test, and whole distributions installed into a directory."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import dynamo.plugins
from dynamo.hookspecs import hookimpl
from dynamo.plugins.loading import PluginSource


def _source(distribution: str, *hooks: Callable[..., None], name: str = "main", api: str | None = "1.0", load=None):
    module = types.ModuleType(f"{distribution}.plugin")
    if api is not None:
        module.DYNAMO_PLUGIN_API = api
    for hook in hooks:
        setattr(module, hook.__name__, hookimpl(hook))
    return PluginSource(name, distribution, "2.5", "/somewhere", load or (lambda: module))


@pytest.fixture
def source() -> Callable[..., PluginSource]:
    """A plugin of a distribution, with these functions as its hooks."""
    return _source


class Site:
    """A directory of installed distributions, and a Python that sees it, and dynamo-core, and no other plugin."""

    def __init__(self, directory: Path, without_plugins: Path) -> None:
        self.directory = directory
        self._path = os.pathsep.join(map(str, (directory, without_plugins, *_portions())))

    def install(self, distribution: str, modules: dict[str, str], *, entry: str, name: str = "main") -> None:
        """Lay out what an installer would."""
        info = self.directory / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[dynamo]\n{name} = {entry}\n")
        for module, text in modules.items():
            (self.directory / f"{module}.py").write_text(textwrap.dedent(text))

    def install_engine(self, distribution: str, engine: str, *, plugin: str = "", module: str = "") -> None:
        """A distribution that registers one engine; `plugin` is further code of its plugin module."""
        module = module or distribution.replace("-", "_")
        plugin_text = textwrap.dedent(plugin) + textwrap.dedent(f"""
            from dynamo.hookspecs import hookimpl
            DYNAMO_PLUGIN_API = "1.0"
            @hookimpl
            def dynamo_register_engines(engines):
                engines.register({engine!r}, "{module}_engine:Engine", summary="of {distribution}")
            """)
        engine_text = f"class Engine:\n    origin = {distribution!r}\n"
        self.install(
            distribution, {f"{module}_plugin": plugin_text, f"{module}_engine": engine_text}, entry=f"{module}_plugin"
        )

    def python(self, code: str, **environ: str) -> list[str]:
        """Run `code` in a fresh process; the lines it prints."""
        done = subprocess.run(
            [sys.executable, "-S", "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": self._path, **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


def _portions() -> list[Path]:
    """Where the portions of dynamo-core lie: the sources, or what was installed."""
    return [Path(dynamo.plugins.__file__).parents[2]]


@pytest.fixture(scope="session")
def without_plugins(tmp_path_factory) -> Path:
    """The installed distributions but other members of the workspace, which are plugins too."""
    directory = tmp_path_factory.mktemp("site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name == "dynamo" or (path.name.startswith("dynamo_") and not path.name.startswith("dynamo_core-")):
            continue
        (directory / path.name).symlink_to(path)
    return directory


@pytest.fixture
def site(tmp_path, without_plugins) -> Site:
    """Where third parties install."""
    return Site(tmp_path, without_plugins)
