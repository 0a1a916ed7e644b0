"""What --model may name on this machine; ids of hubs are in test_hub.py."""

from __future__ import annotations

import pytest

from dynamo.errors import ConfigError
from dynamo.reference import demo_model_directory
from dynamo.worker.models import is_model_id, resolve_model


def test_a_directory_is_taken_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model(str(demo_model_directory())) == str(demo_model_directory())


def test_the_home_directory_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    assert resolve_model("~/m") == str(tmp_path / "m")


def test_a_directory_of_the_name_of_an_id_is_the_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    assert resolve_model("org/name") == "org/name"
    assert not is_model_id("org/name")


def test_a_directory_that_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json") as caught:
        resolve_model(str(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert caught.value.param == "model"


def test_a_file_is_no_model(tmp_path):
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(ConfigError, match=r"model\.gguf is a file"):
        resolve_model(str(file))


@pytest.mark.parametrize("model", ["/nonexistent", "./nonexistent", "../a/b", "a/b/c", "org/", "~nobody-here/m", "a b"])
def test_what_cannot_be_an_id_is_a_path_that_is_missing(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="does not exist") as caught:
        resolve_model(model)
    assert repr(model)[1:-1] in caught.value.message


@pytest.mark.parametrize("model", ["gpt2", "Qwen/Qwen3-0.6B", "a/b_c.d", "meta-llama/Llama-3.1-8B-Instruct"])
def test_ids(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    assert is_model_id(model)


@pytest.mark.parametrize("model", ["", "-a/b", "a/-b", "a//b", "a/b/c", "a/b\n", "x" * 97, "a/" + "x" * 97])
def test_no_ids(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    assert not is_model_id(model)
