"""Settings of every process: names that users' manifests carry, and what they lead to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from dynamo.config import load_settings, setting_infos
from dynamo.errors import ConfigError
from dynamo.runtime.settings import RuntimeSettings, default_state_directory


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("DYN_NAMESPACE", "prod", "namespace", "prod"),
        ("DYNAMO_NAMESPACE", "prod", "namespace", "prod"),
        ("DYN_SYSTEM_PORT", "9090", "system_port", 9090),
        ("DYNAMO_SYSTEM_PORT", "9090", "system_port", 9090),
        ("DYN_LOG", "debug", "log_level", "debug"),
        ("DYN_REQUEST_PLANE", "tcp", "request_plane", "tcp"),
        ("DYN_INSECURE_PLANES", "true", "insecure_planes", True),
    ],
)
def test_variables_of_manifests_are_understood(variable, value, field, expected):
    assert getattr(load_settings(RuntimeSettings, environ={variable: value}), field) == expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [("DYN_SYSTEM_PORT", "65536"), ("DYN_SYSTEM_PORT", "-2"), ("DYN_TCP_RPC_PORT", "x"), ("DYN_LOG", "loud")],
)
def test_a_wrong_value_names_the_variable(variable, value):
    with pytest.raises(ConfigError, match=f"^{variable}: ") as caught:
        load_settings(RuntimeSettings, environ={variable: value})
    assert repr(value) in caught.value.message


def test_the_plane_secret_has_no_flag_and_is_not_shown():
    settings = load_settings(RuntimeSettings, environ={"DYN_PLANE_SECRET": "open sesame"})
    assert settings.plane_secret == "open sesame"
    assert "open sesame" not in repr(settings)
    assert [info.flags for info in setting_infos(RuntimeSettings) if info.name == "plane_secret"] == [()]


@pytest.mark.parametrize(
    ("backend", "url"),
    [
        ("file", "file:///state/discovery"),
        ("mem", "memory://"),
        ("memory", "memory://"),
        ("etcd", "etcd://"),
        ("file:///elsewhere", "file:///elsewhere"),
        ("memory://a-test", "memory://a-test"),
    ],
)
def test_a_discovery_backend_is_a_name_or_a_url(backend, url):
    assert RuntimeSettings(discovery_backend=backend, state_dir="/state").discovery_url() == url


def test_the_state_directory_is_per_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_state_directory() == str(tmp_path / "dynamo")
    assert RuntimeSettings().state_directory() == tmp_path / "dynamo"
    assert RuntimeSettings(state_dir="/given").state_directory() == Path("/given")


@pytest.mark.parametrize("runtime", ["", "/not/there"])
def test_without_a_runtime_directory_it_is_in_the_temporary_one(monkeypatch, runtime):
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    assert default_state_directory() == str(Path(tempfile.gettempdir()) / f"dynamo-{os.getuid()}")
