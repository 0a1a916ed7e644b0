"""Plugins found the way users install them: as distributions with an entry point, in a fresh process."""

from __future__ import annotations

LIST = """
from dynamo.plugins import plugins
for report in plugins().reports:
    print(report.distribution, report.version, "ok" if report.healthy else report.error.splitlines()[0])
"""
ENGINES = "from dynamo.plugins import plugins; print(*plugins().engines.names())"


def test_an_engine_of_a_third_party_appears_with_its_origin(site):
    site.install_engine("acme-engine", "acme")
    assert site.python(
        """
        from dynamo.plugins import plugins
        found = plugins().engines.registration("acme")
        print(found.distribution, found.summary, found.target, found.stability)
        print(plugins().engines.get("acme").origin)
        report = plugins().reports[-1]
        print(report.name, report.version, report.location, report.api_version, report.healthy)
        """
    ) == [
        "acme-engine of acme-engine acme_engine_engine:Engine beta",
        "acme-engine",
        f"main 1.2 {site.directory} 1.0 True",
    ]


def test_a_plugin_that_cannot_be_imported_is_named_and_the_others_work(site):
    site.install_engine("acme-engine", "acme", plugin="raise OSError('libfast.so.3: cannot open')")
    site.install_engine("zeta-engine", "zeta")
    assert site.python(LIST)[1:] == ["acme-engine 1.2 OSError: libfast.so.3: cannot open", "zeta-engine 1.2 ok"]
    assert site.python(ENGINES) == ["echo mocker reference zeta"]


def test_a_plugin_that_ends_the_process_or_is_no_python_does_not_take_it_down(site):
    site.install_engine("acme-engine", "acme", plugin="import sys; sys.exit('no GPU')")
    site.install("broken", {"broken_plugin": "def ("}, entry="broken_plugin")
    site.install("gone", {}, entry="not_there.plugin")
    lines = site.python(LIST)[1:]
    assert lines[0] == "acme-engine 1.2 SystemExit: no GPU"
    assert lines[1].startswith("broken 1.2 SyntaxError: ")
    assert lines[2] == "gone 1.2 ModuleNotFoundError: No module named 'not_there'"


def test_two_distributions_with_one_name_conflict_at_use_and_nowhere_else(site):
    site.install_engine("acme-engine", "fast")
    site.install_engine("zeta-engine", "fast")
    assert site.python(
        """
        from dynamo.errors import PluginConflict
        from dynamo.plugins import plugins
        print(*plugins().engines.names(), *plugins().engines.conflicts())
        print(plugins().engines.get("echo").__name__)
        try:
            plugins().engines.get("fast")
        except PluginConflict as error:
            print(error.message)
        """
    ) == ["echo fast mocker reference fast", "EchoEngine", "engine 'fast' is registered by acme-engine and zeta-engine"]


def test_a_name_of_dynamo_core_cannot_be_taken_in_silence(site):
    site.install_engine("acme-engine", "echo")
    assert site.python(
        """
        from dynamo.errors import PluginConflict
        from dynamo.plugins import plugins
        try:
            plugins().engines.get("echo")
        except PluginConflict as error:
            print(error.message)
        """
    ) == ["engine 'echo' is registered by acme-engine and dynamo-core"]


def test_a_distribution_without_metadata_is_listed_by_its_module(site):
    site.install_engine("acme-engine", "acme")
    (site.directory / "acme_engine-1.2.dist-info" / "METADATA").unlink()
    site.install_engine("zeta-engine", "zeta")
    assert site.python(LIST)[1:] == ["acme_engine_plugin ? ok", "zeta-engine 1.2 ok"]


def test_plugins_can_be_disabled_by_the_name_of_their_distribution(site):
    site.install_engine("acme-engine", "acme")
    site.install_engine("zeta-engine", "zeta")
    assert site.python(ENGINES, DYN_DISABLE_PLUGINS="acme-engine") == ["echo mocker reference zeta"]
    assert site.python(ENGINES, DYN_DISABLE_PLUGINS=" Acme_Engine , zeta.engine") == ["echo mocker reference"]
    assert site.python(ENGINES, DYN_DISABLE_PLUGINS="all") == ["echo mocker reference"]
    assert site.python(ENGINES, DYN_DISABLE_PLUGINS="acme") == ["acme echo mocker reference zeta"]


def test_a_disabled_plugin_is_not_even_imported(site):
    site.install_engine("acme-engine", "acme", plugin="print('imported')")
    assert site.python(ENGINES, DYN_DISABLE_PLUGINS="acme-engine") == ["echo mocker reference"]


def test_listing_imports_no_engine_and_nothing_heavy(site):
    site.install_engine("acme-engine", "acme")
    assert site.python(
        """
        import sys
        from dynamo.plugins import plugins
        plugins()
        heavy = {"acme_engine_engine", "numpy", "pydantic", "torch", "tokenizers", "httpx", "dynamo.echo.engine"}
        print(*sorted(heavy & set(sys.modules)), len(plugins().reports))
        """
    ) == ["2"]
