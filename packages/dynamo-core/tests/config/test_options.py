"""Flags, help and the reference page are the settings, seen from elsewhere."""

from __future__ import annotations

from typing import ClassVar, Literal

import click
import pytest
from click.testing import CliRunner

from dynamo.config import Settings, setting, setting_infos, settings_from_flags, settings_options, settings_table
from dynamo.errors import ConfigError


class Engine(Settings):
    """Settings of an engine.

    This paragraph is for readers of the code.
    """

    section: ClassVar[str] = "engine"

    batch_size: int = setting(8, env=("DYN_BATCH",), ge=1)
    """Requests in a batch | at most."""
    rate: float | None = setting(None)
    """Tokens per second."""
    dtype: Literal["float32", "float16"] = setting("float32", env=("DYN_DTYPE",))
    """Number format."""
    stop: list[str] = setting([], env=("DYN_STOP",), flags=("--stop", "--stop-word"))
    """Words that end a stream."""
    compile: bool = setting(True, env=("DYN_COMPILE",))
    """Whether to compile."""
    hidden: int = setting(1, flags=())
    """Has no flag."""
    token: str = setting("", env=("DYN_TOKEN",), flags=("--token",), secret=True)
    """Opens the hub."""


class Other(Settings):
    """Has a field of the same name."""

    section: ClassVar[str] = "other"

    batch_size: int = setting(2, flags=("--other-batch-size",))
    """Of the other."""


def parse(*argv: str, environ: dict[str, str] | None = None) -> tuple[Engine, Other]:
    seen: list[tuple[Engine, Other]] = []

    @click.command()
    @settings_options(Engine, Other)
    def command(**flags) -> None:
        seen.append(tuple(settings_from_flags(cls, flags, environ=environ or {}) for cls in (Engine, Other)))

    result = CliRunner().invoke(command, list(argv), catch_exceptions=False)
    if result.exit_code:
        raise click.UsageError(result.output)
    return seen[0]


def test_without_flags_the_defaults_hold():
    engine, other = parse()
    assert (engine, other) == (Engine(), Other())


def test_every_kind_of_flag():
    engine, _ = parse("--batch-size", "3", "--rate", "1.5", "--dtype", "float16", "--no-compile", "--stop", "a")
    assert engine == Engine(batch_size=3, rate=1.5, dtype="float16", compile=False, stop=["a"])


def test_a_list_flag_is_repeated_under_any_of_its_names_and_replaces_the_environment():
    assert parse("--stop", "a,b", "--stop-word", "c", environ={"DYN_STOP": "x"})[0].stop == ["a,b", "c"]
    assert parse(environ={"DYN_STOP": "x,y"})[0].stop == ["x", "y"]


def test_a_switch_flag_beats_the_environment_in_both_directions():
    assert parse("--compile", environ={"DYN_COMPILE": "0"})[0].compile is True
    assert parse("--no-compile", environ={"DYN_COMPILE": "1"})[0].compile is False
    assert parse(environ={"DYN_COMPILE": "0"})[0].compile is False


def test_two_subsystems_may_have_a_field_of_one_name():
    engine, other = parse("--batch-size", "5", "--other-batch-size", "6")
    assert (engine.batch_size, other.batch_size) == (5, 6)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--batch-size", "many"], "'many' is not a valid integer"),
        (["--dtype", "int8"], "'int8' is not one of 'float32', 'float16'"),
        (["--batch-sise", "3"], "--batch-size"),
        (["--hidden", "3"], "--hidden"),
        (["--token", "t"], "--token"),
    ],
)
def test_wrong_flags_are_refused_by_name(argv, complaint):
    with pytest.raises(click.UsageError) as caught:
        parse(*argv)
    assert complaint in " ".join(caught.value.message.split())


def test_a_value_out_of_range_names_its_flag():
    with pytest.raises(ConfigError, match=r"^--batch-size: .*, got 0$"):
        parse("--batch-size", "0")


def test_settings_come_from_the_process_environment_by_default(monkeypatch):
    monkeypatch.setenv("DYN_BATCH", "77")
    assert settings_from_flags(Engine, {}).batch_size == 77


def test_help_says_default_and_environment_and_no_secret():
    @click.command()
    @settings_options(Engine)
    def command(**flags) -> None:
        """Unused."""

    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "Requests in a batch | at most. [default: 8; env: DYN_BATCH]" in text
    assert "[float32|float16]" in text
    assert "--compile / --no-compile" in text
    assert "token" not in text.lower().replace("tokens per second", "")


def test_a_secret_has_no_flag_and_no_repr():
    (token,) = [info for info in setting_infos(Engine) if info.name == "token"]
    assert token.secret
    assert token.flags == ()
    assert "s3cret" not in repr(Engine(token="s3cret"))


def test_the_reference_page_has_a_row_for_each_setting():
    lines = settings_table(Engine).splitlines()
    assert lines[:3] == ["## Engine", "", "Settings of an engine."]
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert list(rows) == [f"engine.{info.name}" for info in setting_infos(Engine)]
    assert rows["engine.batch_size"] == (
        "| `engine.batch_size` | `int` | `8` | `--batch-size` | `DYN_BATCH` | Requests in a batch \\| at most. |"
    )
    assert rows["engine.stop"].split(" | ")[1:5] == ["`list[str]`", "`[]`", "`--stop`, `--stop-word`", "`DYN_STOP`"]
    assert "`Literal['float32', 'float16']`" in rows["engine.dtype"]
    assert rows["engine.token"].split(" | ")[2:4] == ["secret", "-"]
    assert rows["engine.hidden"].split(" | ")[3] == "-"
