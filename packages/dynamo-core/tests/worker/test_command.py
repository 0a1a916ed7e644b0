"""The help of a worker program has the flags of its engine, too."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dynamo.config import Settings, setting_infos
from dynamo.echo.settings import EchoSettings
from dynamo.mocker.settings import MockerSettings
from dynamo.reference.settings import ReferenceSettings


@pytest.mark.parametrize(
    ("module", "settings"), [("echo", EchoSettings), ("mocker", MockerSettings), ("reference", ReferenceSettings)]
)
def test_the_help_has_every_flag_of_the_engine_in_the_order_of_its_settings(module, settings: type[Settings]):
    done = subprocess.run(
        [sys.executable, "-m", f"dynamo.{module}", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith(f"Usage: python3 -m dynamo.{module}")
    places = [done.stdout.index(f"\n  {info.flags[0]}") for info in setting_infos(settings)]
    assert places == sorted(places)
    assert done.stdout.index("\nOptions:") > places[-1]
    assert "--served-model-name" in done.stdout
