import subprocess
import sys
import textwrap

import click
import pytest

from dynamo.cli.program import run
from dynamo.errors import ConfigError
from dynamo.plugins import plugins
from dynamo.plugins.loading import CommandEntry


def python(code, *, env=None, **kwargs):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, **kwargs)


@pytest.fixture
def command():
    """Adds a command to the program for one test."""
    added = []

    def add(function, name="probe"):
        plugins().commands[name] = CommandEntry(name, "For a test.", "dynamo-test", click.command(name)(function))
        added.append(name)

    yield add
    for name in added:
        del plugins().commands[name]


@pytest.fixture
def lazy_command():
    def add(target):
        plugins().commands["lazy"] = CommandEntry("lazy", "For a test.", "dynamo-test", target)

    yield add
    plugins().commands.pop("lazy", None)


def test_help_imports_nothing_heavy_and_lists_all_commands():
    done = python("""
        import sys
        from dynamo.cli.program import run
        code = run(["--help"])
        heavy = {"pydantic", "numpy", "msgspec", "torch", "yaml", "httpx", "asyncio", "jinja2", "tokenizers"}
        print("heavy:", sorted(heavy & set(sys.modules)), "code:", code)
    """)
    assert "heavy: [] code: 0" in done.stdout
    for name in ("serve", "chat", "plugins", "doctor"):
        assert f"\n  {name} " in done.stdout


def test_listing_plugins_imports_no_engine():
    done = python("""
        import sys
        from dynamo.cli.program import run
        run(["plugins"])
        print("engines:", [name for name in sys.modules if name.startswith(("dynamo.reference", "dynamo.echo", "numpy"))])
    """)
    assert "engines: []" in done.stdout


def test_module_and_console_script_are_the_same_program():
    done = subprocess.run([sys.executable, "-m", "dynamo.cli", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("dynamo ")
    assert done.returncode == 0


def test_without_arguments_the_help_is_shown(capsys):
    assert run([]) in (0, 2)  # click 8.1, and later
    assert "Commands:" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv"], "no command 'serv'; did you mean 'serve'?"),
        (["plguins", "--json"], "no command 'plguins'; did you mean 'plugins'?"),
        (["qqq"], "no command 'qqq'; there are: chat, "),
        (["--verison"], "'--verison'. Did you mean '--version'?"),
        (["plugins", "--jsn"], "'--jsn'. Did you mean '--json'?"),
    ],
)
def test_wrong_usage_names_what_is_near(capsys, arguments, message):
    assert run(arguments) == 2
    assert message.lower() in capsys.readouterr().err.lower()


def test_error_is_two_lines_without_traceback(capsys, command):
    def fails():
        raise ConfigError("the port is taken", hint="choose another")

    command(fails)
    assert run(["probe"]) == 1
    assert capsys.readouterr().err == "Error: the port is taken\nchoose another\n"


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_traceback_on_request(capsys, command, monkeypatch, how):
    def fails():
        raise ConfigError("the port is taken")

    command(fails)
    if how == "environment":
        monkeypatch.setenv("DYN_DEBUG", "1")
    assert run(["--debug", "probe"] if how == "flag" else ["probe"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("Error: the port is taken\n")


def test_interrupt_is_quiet(capsys, command):
    def interrupted():
        raise KeyboardInterrupt

    command(interrupted)
    assert run(["probe"]) == 130
    assert capsys.readouterr().err.strip() == ""


def test_exit_code_of_a_command(command):
    command(lambda: click.get_current_context().exit(3))
    assert run(["probe"]) == 3


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_package.cli:command", "command 'lazy' of dynamo-test cannot be imported: No module named"),
        (
            "dynamo.cli.group:nothing",
            "command 'lazy' of dynamo-test cannot be imported: dynamo.cli.group has no nothing",
        ),
        ("dynamo.cli.group:LazyGroup", "dynamo.cli.group:LazyGroup of dynamo-test is not a click command"),
    ],
)
def test_broken_command_of_a_plugin(capsys, lazy_command, target, message):
    lazy_command(target)
    assert run(["lazy"]) == 1
    assert message in capsys.readouterr().err
    assert run(["--help"]) == 0


def test_closed_pipe_is_quiet():
    done = python("""
        import os, subprocess, sys
        read, write = os.pipe()
        os.close(read)
        child = subprocess.run([sys.executable, "-m", "dynamo.cli", "plugins"], stdout=write, stderr=subprocess.PIPE)
        print(child.returncode, child.stderr)
    """)
    assert done.stdout == "1 b''\n"
