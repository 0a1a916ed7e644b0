"""Where files, batches and responses are kept when a run of `dynamo serve` has ended."""

from __future__ import annotations

import stat

import pytest

from dynamo.errors import ConfigError
from dynamo.serve.settings import ServeSettings
from dynamo.serve.store import choose_store


def test_every_model_has_a_private_store_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = choose_store(ServeSettings(), "Qwen/Qwen3-0.6B")
    assert store.is_relative_to(tmp_path / "state" / "dynamo" / "store")
    assert store.name.startswith("Qwen-Qwen3-0.6B-")
    for made in (store, store.parent, tmp_path / "state" / "dynamo"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert choose_store(ServeSettings(), "Qwen/Qwen3-0.6B") == store
    assert len({choose_store(ServeSettings(), name) for name in ("Qwen/Qwen3-0.6B", "Qwen-Qwen3-0.6B", "..", "")}) == 4


def test_one_directory_is_one_model_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    monkeypatch.chdir(tmp_path)
    settings = ServeSettings(state_dir=str(tmp_path / "state"))
    assert choose_store(settings, "model") == choose_store(settings, str(tmp_path / "link"))


def test_it_is_below_a_state_directory_that_is_named(tmp_path):
    store = choose_store(ServeSettings(state_dir=str(tmp_path)), "demo")
    assert store.is_relative_to(tmp_path / "store")


def test_the_user_chooses_another_one_or_none(tmp_path):
    assert choose_store(ServeSettings(store_dir=str(tmp_path / "a" / "b")), "demo") == tmp_path / "a" / "b"
    assert choose_store(ServeSettings(store_dir="none", state_dir=str(tmp_path)), "demo") is None
    assert not (tmp_path / "store").exists()


def test_what_the_user_named_must_work(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="Not a directory") as refused:
            choose_store(ServeSettings(store_dir=str(path)), "demo")
        assert "none" in refused.value.hint


def test_without_a_home_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert choose_store(ServeSettings(), "demo") is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
