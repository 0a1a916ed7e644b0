"""Where a setting's value comes from, and what is said when it is wrong."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from pydantic import model_validator

from dynamo.config import Settings, load_settings, read_config_file, setting
from dynamo.errors import ConfigError


class Kitchen(Settings):
    """Settings of a kitchen."""

    section: ClassVar[str] = "kitchen"

    stove_watts: int = setting(1000, env=("DYN_STOVE", "DYNAMO_STOVE"), ge=0, le=9000)
    """Power."""
    fuel: Literal["gas", "wood"] = setting("gas", env=("DYN_FUEL",))
    """What burns."""
    cooks: list[str] = setting(["ann"], env=("DYN_COOKS",), flags=("--cook",))
    """Who cooks."""
    shifts: list[int] | None = setting(None, env=("DYN_SHIFTS",))
    """Hours."""
    open: bool = setting(False, env=("DYN_OPEN",))
    """Whether guests may come."""
    pin: str = setting("", env=("DYN_PIN",), secret=True, max_length=4)
    """Opens the door."""


def test_flag_then_environment_then_file_then_default():
    file, environ, flags = {"stove_watts": 1}, {"DYN_STOVE": "2"}, {"stove_watts": 3}
    assert load_settings(Kitchen).stove_watts == 1000
    assert load_settings(Kitchen, file=file).stove_watts == 1
    assert load_settings(Kitchen, file=file, environ=environ).stove_watts == 2
    assert load_settings(Kitchen, file=file, environ=environ, flags=flags).stove_watts == 3


def test_a_flag_that_was_not_given_leaves_the_rest_alone():
    assert load_settings(Kitchen, flags={"stove_watts": None}, environ={"DYN_STOVE": "2"}).stove_watts == 2


def test_falsy_values_are_values():
    got = load_settings(Kitchen, flags={"stove_watts": 0, "open": False}, environ={"DYN_STOVE": "2", "DYN_OPEN": "1"})
    assert (got.stove_watts, got.open) == (0, False)


def test_the_first_name_that_is_set_wins():
    assert load_settings(Kitchen, environ={"DYNAMO_STOVE": "2"}).stove_watts == 2
    assert load_settings(Kitchen, environ={"DYNAMO_STOVE": "2", "DYN_STOVE": "3"}).stove_watts == 3


def test_an_empty_variable_is_not_set():
    assert load_settings(Kitchen, environ={"DYN_STOVE": "", "DYNAMO_STOVE": "5"}).stove_watts == 5
    assert load_settings(Kitchen, environ={"DYN_STOVE": ""}, file={"stove_watts": 7}).stove_watts == 7


def test_lists_come_from_the_environment_by_commas():
    got = load_settings(Kitchen, environ={"DYN_COOKS": " bob, cy ,,", "DYN_SHIFTS": "8,16"})
    assert (got.cooks, got.shifts) == (["bob", "cy"], [8, 16])


def test_default_lists_are_not_shared():
    first = load_settings(Kitchen)
    first.cooks.append("dan")
    assert load_settings(Kitchen).cooks == ["ann"]


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("no", False)])
def test_switches_from_the_environment(text, value):
    assert load_settings(Kitchen, environ={"DYN_OPEN": text}).open is value


@pytest.mark.parametrize(
    ("sources", "named", "value"),
    [
        ({"flags": {"stove_watts": 10000}}, "--stove-watts", "10000"),
        ({"environ": {"DYNAMO_STOVE": "hot"}}, "DYNAMO_STOVE", "'hot'"),
        ({"file": {"stove_watts": -1}}, "kitchen.stove_watts", "-1"),
        ({"environ": {"DYN_FUEL": "coal"}}, "DYN_FUEL", "'coal'"),
        ({"environ": {"DYN_SHIFTS": "8,noon"}}, "DYN_SHIFTS", "'noon'"),
        ({"flags": {"cooks": "ann"}}, "--cook", "'ann'"),
    ],
)
def test_a_wrong_value_names_where_it_came_from(sources, named, value):
    with pytest.raises(ConfigError) as caught:
        load_settings(Kitchen, **sources)
    assert caught.value.message.startswith(f"{named}: ")
    assert caught.value.message.endswith(f", got {value}")


def test_several_wrong_values_are_all_named():
    with pytest.raises(ConfigError) as caught:
        load_settings(Kitchen, environ={"DYN_STOVE": "hot", "DYN_FUEL": "coal"})
    assert "DYN_STOVE: " in caught.value.message
    assert "; DYN_FUEL: " in caught.value.message
    assert caught.value.param == "stove_watts"


def test_a_wrong_secret_is_named_and_not_shown():
    with pytest.raises(ConfigError) as caught:
        load_settings(Kitchen, environ={"DYN_PIN": "hunter2"})
    assert caught.value.message.startswith("DYN_PIN: ")
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"


def test_an_error_over_the_whole_object_shows_no_secret():
    class Locked(Kitchen):
        """Gas needs a pin."""

        @model_validator(mode="after")
        def _closed(self):
            if self.open:
                raise ValueError("an open kitchen cannot be locked")
            return self

    with pytest.raises(ConfigError, match=r"^kitchen: .*cannot be locked$") as caught:
        load_settings(Locked, environ={"DYN_PIN": "1234", "DYN_OPEN": "1"})
    assert "1234" not in f"{caught.value} {caught.value.__cause__}"


def test_an_unknown_key_of_a_file_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown setting kitchen\.stove_wats") as caught:
        load_settings(Kitchen, file={"stove_wats": 5})
    assert caught.value.hint == "did you mean 'stove_watts'?"
    assert caught.value.param == "stove_wats"


def test_a_key_is_recognised_by_its_flag_spelling():
    with pytest.raises(ConfigError) as caught:
        load_settings(Kitchen, file={"Stove-Watts": 5})
    assert caught.value.hint == "did you mean 'stove_watts'?"


def test_an_unknown_key_like_no_other_lists_what_there_is():
    with pytest.raises(ConfigError) as caught:
        load_settings(Kitchen, file={"xyzzy": 5})
    assert caught.value.hint == "known settings: cooks, fuel, open, pin, shifts, stove_watts"


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_settings(Kitchen).stove_watts = 1


def test_a_wrong_default_is_found_at_once():
    class Wrong(Settings):
        """Its default is out of range."""

        section: ClassVar[str] = "wrong"
        number: int = setting(5, le=3)

    with pytest.raises(ConfigError, match=r"^number: .*less than or equal to 3"):
        load_settings(Wrong)


def test_a_file_of_sections_is_read(tmp_path):
    path = tmp_path / "dynamo.yaml"
    path.write_text("kitchen:\n  stove_watts: 5\n  cooks: [bob]\nrouter: {}\n")
    sections = read_config_file(path)
    assert sections == {"kitchen": {"stove_watts": 5, "cooks": ["bob"]}, "router": {}}
    assert load_settings(Kitchen, file=sections["kitchen"]).cooks == ["bob"]


def test_json_is_yaml_and_an_empty_file_says_nothing(tmp_path):
    path = tmp_path / "dynamo.json"
    path.write_text('{"kitchen": {"fuel": "wood"}}')
    assert read_config_file(path) == {"kitchen": {"fuel": "wood"}}
    path.write_text("# nothing\n")
    assert read_config_file(path) == {}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
        (b"- kitchen", "expected a map of sections"),
        (b"kitchen: 5", "expected a map of sections"),
        (b"just words", "expected a map of sections"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, content, complaint):
    path = tmp_path / "dynamo.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_config_file(path)
    assert str(path) in caught.value.message


def test_a_yaml_error_names_the_file_and_the_line(tmp_path):
    path = tmp_path / "dynamo.yaml"
    path.write_text("a: 1\nb: [1")
    with pytest.raises(ConfigError) as caught:
        read_config_file(path)
    assert f'in "{path}", line 2' in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read configuration file .*: No such file"):
        read_config_file(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_config_file(tmp_path)
