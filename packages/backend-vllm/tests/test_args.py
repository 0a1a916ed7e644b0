"""Our flags, vLLM's flags, and flags of other launchers."""

from __future__ import annotations

import pytest

from dynamo.errors import ConfigError
from dynamo.protocols.llm import DisaggregationMode
from dynamo.vllm.args import requested_mode, split_flags

AGGREGATED, PREFILL, DECODE = DisaggregationMode


def test_our_flags_are_split_off_and_the_rest_stays_in_order():
    settings, rest = split_flags(
        ["-tp", "2", "--engine-start-timeout-seconds", "30", "--dtype=float32", "--kv-events-config", '{"topic": "a"}']
    )
    assert settings.engine_start_timeout_seconds == 30
    assert rest == ["-tp", "2", "--dtype=float32", "--kv-events-config", '{"topic": "a"}']


def test_a_wrong_value_of_ours_is_refused():
    with pytest.raises(ConfigError, match="engine-start-timeout-seconds"):
        split_flags(["--engine-start-timeout-seconds", "soon"])


@pytest.mark.parametrize(
    ("argv", "rest", "named"),
    [
        (["--port", "8000", "--seed", "1"], ["--seed", "1"], "--port"),
        (["--port=8000", "--seed", "1"], ["--seed", "1"], "--port"),
        (["--enable-auto-tool-choice", "--seed", "1"], ["--seed", "1"], "--enable-auto-tool-choice"),
        (["--tool_call_parser", "hermes"], [], "--tool_call_parser"),
        (["--middleware", "a", "b", "--seed", "1"], ["--seed", "1"], "--middleware"),
    ],
)
def test_flags_without_a_meaning_warn_by_name(argv, rest, named, caplog):
    assert split_flags(argv)[1] == rest
    assert [named in record.getMessage() for record in caplog.records] == [True]


def test_a_connector_of_older_manifests_is_known_and_warned_about(caplog):
    assert split_flags(["--connector", "none"])[1] == []
    assert not caplog.records
    assert split_flags(["--connector", "lmcache"])[1] == []
    assert "--connector lmcache" in caplog.text


@pytest.mark.parametrize(
    ("argv", "mode", "wanted"),
    [
        ([], AGGREGATED, AGGREGATED),
        (["--is-prefill-worker"], AGGREGATED, PREFILL),
        (["--is-decode-worker"], AGGREGATED, DECODE),
        (["--is-decode-worker"], DECODE, DECODE),
        ([], PREFILL, PREFILL),
    ],
)
def test_older_manifests_name_the_mode_by_flags(argv, mode, wanted):
    assert requested_mode(split_flags(argv)[0], mode) is wanted


def test_contradicting_modes_are_refused():
    with pytest.raises(ConfigError, match="prefill worker and a decode worker"):
        requested_mode(split_flags(["--is-prefill-worker"])[0], DECODE)
