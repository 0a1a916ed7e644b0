"""The example backend is found as a plugin and keeps the engine contract."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.plugins.loading import Plugins, PluginSource, load_plugins
from dynamo.protocols.engine import EngineOptions
from dynamo.testing.engine_conformance import SuiteSettings, run_engine_conformance

_SOURCE = Path(__file__).parents[4] / "examples" / "02-custom-backend" / "src"
pytestmark = pytest.mark.skipif(not _SOURCE.is_dir(), reason="only in a checkout: there are no examples here")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    monkeypatch.syspath_prepend(str(_SOURCE))
    source = PluginSource(
        "my-backend", "my-dynamo-backend", "0.1.0", str(_SOURCE), lambda: importlib.import_module("my_backend.plugin")
    )
    return load_plugins([source])


def test_the_example_registers_one_engine(loaded: Plugins) -> None:
    assert [report.healthy for report in loaded.reports] == [True]
    assert loaded.engines.names() == ["my-backend"]


def test_the_example_keeps_the_contract(loaded: Plugins) -> None:
    report = run_engine_conformance(loaded.engines.get("my-backend"), settings=SuiteSettings(soon_seconds=2.0))
    report.raise_for_failures()
    assert {"limits.stop_token_ids", "abort.ends", "drain", "cleanup.open_streams"} <= set(report.named("ok"))
    skipped = {check_id.partition(".")[0] for check_id in report.named("skipped")}
    assert {"events", "embeddings", "guided", "lora", "logprobs", "resume"} <= skipped


async def test_a_model_without_tokenizer_is_a_clear_error(loaded: Plugins, tmp_path: Path) -> None:
    engine = loaded.engines.get("my-backend")(EngineOptions(model=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"there is no .*tokenizer\.json"):
        await engine.start()


def test_an_unknown_flag_is_refused_by_name(loaded: Plugins) -> None:
    with pytest.raises(ConfigError, match="--speed"):
        loaded.engines.get("my-backend")(EngineOptions(argv=("--speed", "9")))
