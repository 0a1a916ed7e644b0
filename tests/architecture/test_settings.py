"""Settings classes: documented, named once, and with a place in a configuration file."""

import collections

import pytest

from dynamo.config import Settings, setting_infos
from tests.architecture.tree import ROOT
from tools.docs.settings import settings_classes

CLASSES = settings_classes()


def test_there_are_settings():
    assert "RuntimeSettings" in {cls.__name__ for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_settings_class_is_documented(cls: type[Settings]):
    assert cls.__doc__ not in (None, Settings.__doc__)
    assert [info.name for info in setting_infos(cls) if not info.help] == []


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_settings_class_is_in_the_reference(cls: type[Settings]):
    page = (ROOT / "docs/reference/settings.md").read_text("utf-8")
    assert f"## {cls.__name__}\n" in page
    assert [info.name for info in setting_infos(cls) if f"`{cls.section}.{info.name}`" not in page] == []


def test_sections_belong_to_one_class():
    sections = collections.Counter(cls.section for cls in CLASSES)
    assert "" not in sections
    assert [section for section, times in sections.items() if times > 1] == []


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_flags_and_environment_names_are_given_once(cls: type[Settings]):
    """Within a class; two processes may well read one variable, e.g. `dynamo serve` and the frontend that it starts."""
    names = collections.Counter(name for info in setting_infos(cls) for name in (*info.flags, *info.env))
    assert [name for name, times in names.items() if times > 1] == []
