"""Perf models from measurements, in every layout that people have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dynamo.errors import ConfigError
from dynamo.mocker.perf_model import PerfModel
from dynamo.mocker.profile_data import load_perf_model

TRUE = PerfModel(
    prefill_base=0.010,
    prefill_token=30e-6,
    prefill_token_context=1e-9,
    decode_base=0.006,
    decode_request=25e-6,
    decode_context_token=40e-9,
)
ISL = np.array([100.0, 500.0, 2000.0, 8000.0, 30000.0])
TTFT_MS = 1000 * (TRUE.prefill_base + TRUE.prefill_token * ISL + TRUE.prefill_token_context * ISL**2 / 2)


def _itl_ms(requests: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return 1000 * (TRUE.decode_base + TRUE.decode_request * requests + TRUE.decode_context_token * tokens)


def _expect_true(model: PerfModel) -> None:
    for name in PerfModel.__dataclass_fields__:
        assert getattr(model, name) == pytest.approx(getattr(TRUE, name), rel=1e-6), name


def _profile(capacity: float = 100_000.0) -> tuple[dict, dict]:
    usage, context = (grid.ravel() for grid in np.meshgrid([0.1, 0.5, 0.9], [1000.0, 4000.0]))
    itl = _itl_ms(usage * capacity / context, usage * capacity)
    decode = {"x_kv_usage": usage, "y_context_length": context, "z_itl": itl, "max_kv_tokens": np.array([capacity])}
    return {"prefill_isl": ISL, "prefill_ttft": TTFT_MS}, decode


def test_a_profilers_directory_of_arrays(tmp_path: Path) -> None:
    for name, arrays in zip(("prefill", "decode"), _profile(), strict=True):
        directory = tmp_path / f"selected_{name}_interpolation"
        directory.mkdir()
        np.savez(directory / "raw_data.npz", **arrays)
    _expect_true(load_perf_model(tmp_path))


def test_a_profilers_directory_of_json(tmp_path: Path) -> None:
    for name, arrays in zip(("prefill", "decode"), _profile(), strict=True):
        lists = {key: value.tolist() for key, value in arrays.items()}
        (tmp_path / f"{name}_raw_data.json").write_text(json.dumps(lists))
    _expect_true(load_perf_model(tmp_path))


def test_one_file_with_a_grid(tmp_path: Path) -> None:
    tokens, context = np.array([1e3, 1e4, 1e5]), np.array([500.0, 2000.0])
    itl = _itl_ms(tokens[:, None] / context, np.broadcast_to(tokens[:, None], (3, 2)))
    path = tmp_path / "perf_data.npz"
    np.savez(
        path,
        prefill_isl=ISL,
        prefill_ttft_ms=TTFT_MS,
        decode_active_kv_tokens=tokens,
        decode_context_length=context,
        decode_itl=itl,
    )
    _expect_true(load_perf_model(path))


def test_own_measurements(tmp_path: Path) -> None:
    requests, tokens = np.array([1.0, 8.0, 64.0, 64.0]), np.array([1e3, 1e4, 1e4, 2e5])
    path = tmp_path / "mine.json"
    points = {
        "prefill": np.stack([ISL, TTFT_MS], axis=1).tolist(),
        "decode": np.stack([requests, tokens, _itl_ms(requests, tokens)], axis=1).tolist(),
    }
    path.write_text(json.dumps(points))
    _expect_true(load_perf_model(path))


def test_more_work_never_takes_less_time(tmp_path: Path) -> None:
    path = tmp_path / "noisy.json"
    path.write_text(json.dumps({"prefill": [[10, 50], [100, 40]], "decode": [[1, 10, 9], [8, 20, 8], [64, 30, 7]]}))
    model = load_perf_model(path)
    assert all(getattr(model, name) >= 0 for name in PerfModel.__dataclass_fields__)
    assert model.prefill_base == pytest.approx(0.045)
    assert model.decode_base == pytest.approx(0.008)


def test_what_was_not_varied_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"prefill": [[100, 20]], "decode": [[1, 50, 9], [9, 50, 17]]}))
    model = load_perf_model(path)
    assert (model.prefill_token, model.prefill_token_context, model.decode_context_token) == (0, 0, 0)
    assert model.prefill_base == pytest.approx(0.020)
    assert model.decode_request == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ('{"prefill": [[1, 2]]}', "lacks 'decode'"),
        ('{"prefill": [], "decode": [[1, 2, 3]]}', "points have shape"),
        ('{"prefill": [[1, 2, 3]], "decode": [[1, 2, 3]]}', "points have shape"),
        ('{"prefill": [[1, -2]], "decode": [[1, 2, 3]]}', "negative"),
        ('{"prefill": [[1, NaN]], "decode": [[1, 2, 3]]}', "not a number"),
        ("[1, 2]", "cannot be used"),
    ],
)
def test_what_is_no_measurement_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_perf_model(path)
    assert str(path) in caught.value.message


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 not really")
    for path in (tmp_path / "nowhere", tmp_path, broken):
        with pytest.raises(ConfigError, match="cannot be used"):
            load_perf_model(path)


def test_a_step_with_both_halves_reads_the_weights_once() -> None:
    both = TRUE.step_seconds(100, 4950.0, 8, 1000)
    prefill, decode = TRUE.step_seconds(100, 4950.0, 0, 0), TRUE.step_seconds(0, 0.0, 8, 1000)
    assert both == pytest.approx(prefill + decode - min(TRUE.prefill_base, TRUE.decode_base))
    assert TRUE.step_seconds(0, 0.0, 0, 0) == 0.0


def test_decoding_can_be_faster() -> None:
    twice = TRUE.faster_decode(2.0)
    assert twice.step_seconds(0, 0.0, 8, 1000) == pytest.approx(TRUE.step_seconds(0, 0.0, 8, 1000) / 2)
    assert twice.step_seconds(100, 0.0, 0, 0) == TRUE.step_seconds(100, 0.0, 0, 0)
