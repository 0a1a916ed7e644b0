"""Loading plugins one by one: what fails is taken out whole and named, the rest is not touched."""

from __future__ import annotations

import logging

import click
import pytest

from dynamo.errors import PluginConflict, PluginError, PluginNotFound
from dynamo.plugins import load_plugins
from dynamo.plugins.loading import Plugins


def dynamo_register_engines(engines):
    engines.register("fine", "json:loads")


def report_of(loaded: Plugins, distribution: str):
    (found,) = [report for report in loaded.reports if report.distribution == distribution]
    return found


def test_no_plugins_is_not_an_error():
    loaded = load_plugins([])
    assert loaded.reports == []
    assert all(registry.names() == [] for registry in loaded.registries())


def test_a_plugin_that_registers_and_then_fails_leaves_nothing_behind(source, caplog):
    def dynamo_register_engines(engines):
        engines.register("half", "json:loads")

    def dynamo_register_commands(group):
        group.add_lazy_command("half", "json:loads", "Half.")
        raise RuntimeError("the other half")

    def register_fine(engines):
        engines.register("half", "json:dumps")

    register_fine.__name__ = "dynamo_register_engines"
    loaded = load_plugins(
        [source("bad", dynamo_register_engines, dynamo_register_commands), source("good", register_fine)]
    )
    assert loaded.engines.registration("half").distribution == "good"
    assert loaded.commands == {}
    assert [(r.distribution, r.healthy, r.error) for r in loaded.reports] == [
        ("bad", False, "RuntimeError: the other half"),
        ("good", True, None),
    ]
    assert "plugin main of bad is not used: RuntimeError: the other half" in caplog.text


def test_a_broken_plugin_does_not_take_out_another_one_of_its_distribution(source):
    def bad(engines):
        engines.register("bad", "json:loads")
        raise RuntimeError("bad")

    bad.__name__ = "dynamo_register_engines"
    loaded = load_plugins([source("acme", dynamo_register_engines, name="a"), source("acme", bad, name="b")])
    assert loaded.engines.names() == ["fine"]
    assert [report.healthy for report in loaded.reports] == [True, False]


@pytest.mark.parametrize("api", ["1.0", "1.7", "1", None])
def test_any_minor_version_of_our_api_is_welcome(source, api):
    loaded = load_plugins([source("acme", dynamo_register_engines, api=api)])
    assert loaded.engines.names() == ["fine"]
    assert report_of(loaded, "acme").api_version == api


@pytest.mark.parametrize(("api", "upgrade"), [("0.9", "acme"), ("2.0", "dynamo-core"), ("two", "acme"), ("", "acme")])
def test_another_major_version_is_refused_with_what_to_upgrade(source, api, upgrade):
    loaded = load_plugins([source("acme", dynamo_register_engines, api=api)])
    assert loaded.engines.names() == []
    error = report_of(loaded, "acme").error
    assert error == f"acme 2.5 was written for plugin API {api}; this is 1.0\nupgrade {upgrade}"


def test_an_unknown_hook_is_reported_by_name(source):
    def dynamo_register_engins(engines):
        raise AssertionError("is never called")

    loaded = load_plugins([source("acme", dynamo_register_engins), source("good", dynamo_register_engines)])
    assert "unknown hook 'dynamo_register_engins'" in report_of(loaded, "acme").error
    assert report_of(loaded, "good").healthy


def test_an_argument_that_the_hook_does_not_have_is_reported_by_name(source):
    def dynamo_register_engines(engines, colour):
        raise AssertionError("is never called")

    assert "'colour'" in report_of(load_plugins([source("acme", dynamo_register_engines)]), "acme").error


def test_a_hook_may_take_fewer_arguments(source):
    def dynamo_register_routers(pickers):
        pickers.register("nearest", "json:loads")

    def dynamo_register_engines():
        pass

    loaded = load_plugins([source("acme", dynamo_register_routers, dynamo_register_engines)])
    assert loaded.pickers.names() == ["nearest"]
    assert report_of(loaded, "acme").healthy


def test_an_entry_point_to_nothing_useful_is_healthy_and_empty(source):
    loaded = load_plugins([source("acme", load=lambda: "a string")])
    assert report_of(loaded, "acme").healthy
    assert loaded.engines.names() == []


def test_one_module_under_two_names_is_reported(source):
    first = source("acme", dynamo_register_engines, name="a")
    second = source("acme", name="b", load=first.load)
    loaded = load_plugins([first, second])
    assert [report.healthy for report in loaded.reports] == [True, False]
    assert loaded.engines.conflicts() == []


@pytest.mark.parametrize("name", ["Upper", "", "-x", "a b", "a/b", "naïve", "x\n"])
def test_a_malformed_name_is_refused(source, name):
    def dynamo_register_engines(engines):
        engines.register(name, "json:loads")

    error = report_of(load_plugins([source("acme", dynamo_register_engines)]), "acme").error
    assert error.startswith(f"engine name {name!r} is not valid\nuse lower-case letters")


@pytest.mark.parametrize(
    "target", ["json", "json.loads", "json:", ":loads", "json:loads()", "a-b:c", "json: loads", ""]
)
def test_a_malformed_import_string_is_refused(source, target):
    def dynamo_register_engines(engines):
        engines.register("x", target)

    def dynamo_register_commands(group):
        group.add_lazy_command("x", target, "X.")

    for hook in (dynamo_register_engines, dynamo_register_commands):
        error = report_of(load_plugins([source("acme", hook)]), "acme").error
        assert error == f"{target!r} is not an import string\nwrite it as 'package.module:attribute'"


def engine_target(source, target):
    def dynamo_register_engines(engines):
        engines.register("x", target)

    return load_plugins([source("acme", dynamo_register_engines)]).engines


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("no_such_module.engine:Engine", "No module named 'no_such_module'"),
        ("json:no_such_attribute", "json has no no_such_attribute"),
        ("json:JSONDecoder.no_such.attribute", "json has no JSONDecoder.no_such.attribute"),
    ],
)
def test_a_target_that_does_not_exist_names_the_distribution(source, target, complaint):
    with pytest.raises(PluginError, match=rf"^engine 'x' of acme cannot be imported: {complaint}") as caught:
        engine_target(source, target).get("x")
    assert "acme" in caught.value.hint
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_target_whose_module_fails_in_its_own_way_names_the_distribution(source, tmp_path, monkeypatch):
    (tmp_path / "needs_a_driver.py").write_text("raise OSError('libcuda.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"engine 'x' of acme cannot be imported: libcuda.so.1") as caught:
        engine_target(source, "needs_a_driver:Engine").get("x")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_target_may_be_the_part_itself_or_an_attribute_of_an_attribute(source):
    assert engine_target(source, test_no_plugins_is_not_an_error).get("x") is test_no_plugins_is_not_an_error
    assert engine_target(source, "json:JSONDecoder.decode").get("x").__name__ == "decode"


def test_an_unknown_name_lists_what_there_is(source):
    engines = engine_target(source, "json:loads")
    with pytest.raises(PluginNotFound, match="there is no engine named 'y'") as caught:
        engines.get("y")
    assert caught.value.hint.startswith("installed: x. ")
    with pytest.raises(PluginNotFound) as caught:
        load_plugins([]).pickers.get("y")
    assert caught.value.hint.startswith("installed: none. ")


def test_a_conflict_names_all_owners_and_other_names_work(source):
    def other(engines):
        engines.register("fine", "json:dumps")
        engines.register("other", "json:dumps")

    other.__name__ = "dynamo_register_engines"
    loaded = load_plugins([source("zeta", other), source("acme", dynamo_register_engines)])
    with pytest.raises(PluginConflict, match=r"^engine 'fine' is registered by acme and zeta\n"):
        loaded.engines.get("fine")
    assert loaded.engines.get("other").__name__ == "dumps"
    assert loaded.engines.conflicts() == ["fine"]
    assert [(r.name, r.distribution) for r in loaded.engines] == [("fine", "zeta"), ("fine", "acme"), ("other", "zeta")]
    assert all(report.healthy for report in loaded.reports)


def test_the_first_distribution_to_take_a_command_keeps_it(source, caplog):
    @click.command(help="Say hello.")
    def hello():
        """Unused."""

    def loaded_command(group):
        group.add_command(hello)
        group.add_command(hello, name="hi")

    def lazy_command(group):
        group.add_lazy_command("hello", "json:loads", "Not this one.")

    loaded_command.__name__ = lazy_command.__name__ = "dynamo_register_commands"
    with caplog.at_level(logging.WARNING):
        loaded = load_plugins([source("acme", loaded_command), source("zeta", lazy_command)])
    assert sorted(loaded.commands) == ["hello", "hi"]
    kept = loaded.commands["hello"]
    assert (kept.distribution, kept.summary, kept.target) == ("acme", "Say hello.", hello)
    assert "command 'hello' of zeta is hidden by the one of acme" in caplog.text


def test_a_command_needs_a_name(source):
    def dynamo_register_commands(group):
        group.add_command(click.Command(None))

    error = report_of(load_plugins([source("acme", dynamo_register_commands)]), "acme").error
    assert error.startswith("a command has no name")


def test_every_hook_gets_the_registry_that_is_asked_by_name():
    loaded = Plugins()
    given = [registrar for arguments in loaded.hook_arguments("acme").values() for registrar in arguments.values()]
    assert [id(registrar.registry) for registrar in given if hasattr(registrar, "registry")] == [
        id(registry) for registry in loaded.registries()
    ]
