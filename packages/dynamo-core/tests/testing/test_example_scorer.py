"""The example scorer is found as a plugin and weighs as its README says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from dynamo.plugins import builtin
from dynamo.plugins.loading import Plugins, PluginSource, load_plugins
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.routing import RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import policy_for_mode
from dynamo.router.settings import RouterSettings

_SOURCE = Path(__file__).parents[4] / "examples" / "04-custom-scorer" / "src"
pytestmark = pytest.mark.skipif(not _SOURCE.is_dir(), reason="only in a checkout: there are no examples here")
REQUEST = RouteRequest("r", "m", prompt_tokens=160)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    monkeypatch.syspath_prepend(str(_SOURCE))
    monkeypatch.setenv("MY_ZONE", "near")
    return load_plugins(
        [
            PluginSource("builtin", "dynamo-core", "1", "/", lambda: builtin),
            PluginSource("my-scorer", "my-scorer", "0.1.0", "/", lambda: importlib.import_module("my_scorer")),
        ]
    )


def test_the_example_registers_one_scorer(loaded: Plugins) -> None:
    assert all(report.healthy for report in loaded.reports)
    assert "same-zone" in loaded.scorers.names()


@pytest.mark.parametrize(("weight", "winners"), [(8, {1}), (0, {0, 1, 2})])
def test_the_own_zone_is_worth_its_weight(loaded: Plugins, weight: int, winners: set[int]) -> None:
    settings = RouterSettings(router_mode="kv", router_scorers=[f"same-zone={weight}"])
    table = CandidateTable(policy_for_mode("kv", loaded, settings), settings)
    for number, zone in enumerate(("far", "near", "")):
        table.put(InstanceRecord("ns", "worker", "generate", number, metadata={"zone": zone} if zone else {}))
    assert {table.select(REQUEST, 0.0).key.instance_id for _ in range(60)} == winners
