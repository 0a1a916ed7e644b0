import json
import os
import subprocess
import sys

import pytest

from dynamo.cli.plugins import list_parts
from dynamo.hookspecs import hookimpl
from dynamo.plugins.loading import PluginSource, load_plugins


class EnginePlugin:
    DYNAMO_PLUGIN_API = "1.0"

    def __init__(self, target):
        self.target = target

    @hookimpl
    def dynamo_register_engines(self, engines):
        engines.register("fast", self.target, stability="alpha", summary="a fast one")


def source(distribution, target):
    return PluginSource("engines", distribution, "2.1", "/somewhere", lambda: EnginePlugin(target))


@pytest.fixture
def site(tmp_path):
    """A directory of installed distributions: a good plugin, one that raises, one of another API, two of a name."""
    modules = {
        "good": "engines.register('good', 'no_such_engine_library:Engine')",
        "broken": "raise RuntimeError('GPU driver missing')",
        "twin_a": "engines.register('twin', 'json:dumps')",
        "twin_b": "engines.register('twin', 'json:dumps')",
        "old": "pass",
    }
    for name, body in modules.items():
        api = "0.3" if name == "old" else "1.0"
        (tmp_path / f"{name}_plugin.py").write_text(
            f"from dynamo.hookspecs import hookimpl\nDYNAMO_PLUGIN_API = '{api}'\n"
            f"@hookimpl\ndef dynamo_register_engines(engines):\n    {body}\n"
        )
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[dynamo]\n{name} = {name}_plugin\n")
    return tmp_path


def plugins_command(site, *flags):
    env = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-m", "dynamo.cli", "plugins", *flags], capture_output=True, text=True, env=env
    )


def test_part_says_where_it_comes_from():
    [part] = [p for p in list_parts(load_plugins([source("backend-fast", "json:dumps")])) if p.kind == "engine"]
    assert (part.name, part.stability, part.distribution, part.version) == ("fast", "alpha", "backend-fast", "2.1")
    assert (part.target, part.summary, part.problem) == ("json:dumps", "a fast one", None)


def test_check_imports_targets():
    loaded = load_plugins([source("backend-fast", "no_such_library:Engine")])
    assert [part.problem for part in list_parts(loaded)] == [None]
    [part] = list_parts(loaded, check=True)
    assert part.problem == "cannot be imported: ModuleNotFoundError: No module named 'no_such_library'"


def test_a_target_that_ends_the_process_is_a_finding(tmp_path, monkeypatch):
    (tmp_path / "leaves_at_import.py").write_text("raise SystemExit('bye')")
    monkeypatch.syspath_prepend(str(tmp_path))
    [part] = list_parts(load_plugins([source("backend-fast", "leaves_at_import:Engine")]), check=True)
    assert part.problem == "cannot be imported: SystemExit: bye"


def test_conflict_names_both_distributions():
    loaded = load_plugins([source("one", "json:dumps"), source("two", "json:loads")])
    problems = {part.problem for part in list_parts(loaded)}
    assert problems == {"conflict: registered by one and two; uninstall one of them"}


def test_table_of_an_environment_with_everything_wrong(site):
    done = plugins_command(site)
    assert done.returncode == 0
    rows = [line.split(maxsplit=5) for line in done.stdout.splitlines() if line.startswith("engine ")]
    health = {row[1]: row[5] for row in rows}
    assert health["good"] == "ok"
    assert health["reference"] == "ok"
    assert health["twin"].startswith("conflict: registered by twin-a and twin-b")
    sources = {line.split()[0]: line for line in done.stdout.split("\n\n")[1].splitlines()}
    assert str(site) in sources["good"]
    assert sources["good"].endswith(" ok")
    assert sources["broken"].endswith("RuntimeError: GPU driver missing")
    assert "written for plugin API 0.3; this is 1.0" in sources["old"]


def test_json_and_check(site):
    done = plugins_command(site, "--json", "--check")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    reports = {report["distribution"]: report for report in document["plugins"]}
    assert reports["broken"]["healthy"] is False
    assert reports["twin-a"] == {
        "name": "twin_a",
        "distribution": "twin-a",
        "version": "1.2",
        "location": str(site),
        "error": None,
        "api_version": "1.0",
        "healthy": True,
    }
    [good] = [part for part in document["parts"] if part["name"] == "good"]
    assert good["problem"] == "cannot be imported: ModuleNotFoundError: No module named 'no_such_engine_library'"
