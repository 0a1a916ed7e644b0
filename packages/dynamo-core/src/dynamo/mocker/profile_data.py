"""Fits a `PerfModel` to measurements, in the layouts that people have of them.

* a directory that a profiler wrote: ``selected_prefill_interpolation/raw_data.npz`` and
  ``selected_decode_interpolation/raw_data.npz``, or ``prefill_raw_data.json`` and ``decode_raw_data.json``;
* one ``.npz`` with ``prefill_isl``, ``prefill_ttft_ms``, ``decode_active_kv_tokens``, ``decode_context_length`` and
  ``decode_itl``;
* one ``.json`` of one's own: ``{"prefill": [[tokens, ms], ...], "decode": [[requests, context tokens, ms], ...]}``.

Called once, when an engine or a replay starts.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dynamo.errors import ConfigError
from dynamo.mocker.perf_model import PerfModel

__all__ = ["load_perf_model"]

Floats = npt.NDArray[np.float64]
_LAYOUTS = "a profiler's directory, a .npz of it, or a .json with 'prefill' and 'decode' points"


def load_perf_model(path: Path) -> PerfModel:
    """The perf model that fits the measurements in `path` best, by least squares.

    Raises:
        ConfigError: there is no such file or directory, or it has not the data.
    """
    try:
        prefill, decode = _measurements(path)
        prefill_base, prefill_token, prefill_pair = _fit(prefill[:, 0], prefill[:, 0] ** 2 / 2, prefill[:, 1])
        decode_base, decode_request, decode_token = _fit(decode[:, 0], decode[:, 1], decode[:, 2])
    except (OSError, KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"performance data {str(path)!r} cannot be used: {reason}", param="perf_model", hint=f"give {_LAYOUTS}"
        ) from error
    return PerfModel(prefill_base, prefill_token, prefill_pair, decode_base, decode_request, decode_token)


def _measurements(path: Path) -> tuple[Floats, Floats]:
    """Rows of (tokens, ms) and of (requests, context tokens, ms)."""
    if path.is_dir():
        return _from_directory(path)
    if path.suffix == ".npz":
        arrays = _arrays(path)
        return _prefill_rows(arrays, "prefill_ttft_ms"), _decode_grid(arrays)
    points = json.loads(path.read_text(encoding="utf-8"))
    return _table(points["prefill"], 2), _table(points["decode"], 3)


def _from_directory(path: Path) -> tuple[Floats, Floats]:
    parts = []
    for name in ("prefill", "decode"):
        arrays = path / f"selected_{name}_interpolation" / "raw_data.npz"
        if arrays.is_file():
            parts.append(_arrays(arrays))
        else:
            parts.append(json.loads((path / f"{name}_raw_data.json").read_text(encoding="utf-8")))
    prefill, decode = parts
    context = np.asarray(decode["y_context_length"], np.float64).ravel()
    tokens = np.asarray(decode["x_kv_usage"], np.float64).ravel() * float(np.max(decode["max_kv_tokens"]))
    rows = _columns(tokens / context, tokens, np.asarray(decode["z_itl"], np.float64).ravel())
    return _prefill_rows(prefill, "prefill_ttft"), rows


def _arrays(path: Path) -> dict[str, Any]:
    # Opened here, since numpy leaves a file open that turns out to be no archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


def _prefill_rows(arrays: Mapping[str, Any], milliseconds: str) -> Floats:
    return _columns(arrays["prefill_isl"], arrays[milliseconds])


def _decode_grid(arrays: Mapping[str, Any]) -> Floats:
    """``decode_itl`` has shape ``[active KV tokens, context length]``."""
    tokens, context = np.meshgrid(arrays["decode_active_kv_tokens"], arrays["decode_context_length"], indexing="ij")
    itl = np.asarray(arrays["decode_itl"], np.float64)
    if itl.shape != tokens.shape:
        raise ValueError(f"decode_itl has shape {itl.shape}, not {tokens.shape}")
    return _columns((tokens / context).ravel(), tokens.ravel(), itl.ravel())


def _columns(*columns: Any) -> Floats:
    return _table(np.stack([np.asarray(column, np.float64) for column in columns], axis=1), len(columns))


def _table(rows: Any, width: int) -> Floats:
    table = np.asarray(rows, np.float64)
    if table.ndim != 2 or table.shape[1] != width or not len(table):
        raise ValueError(f"points have shape {table.shape}, not [n, {width}]")
    if not np.isfinite(table).all() or (table < 0).any():
        raise ValueError("a measurement is negative or not a number")
    return table


def _fit(first: Floats, second: Floats, milliseconds: Floats) -> tuple[float, float, float]:
    """Coefficients of 1, `first` and `second` in seconds, none negative: more work never takes less time."""
    columns = np.stack([np.ones_like(first), first, second], axis=1)
    scale = columns.max(axis=0)
    # What never varied cannot be told from the constant.
    chosen = [0, *(index for index in (1, 2) if np.ptp(columns[:, index]) > 0)]
    while True:
        solution = np.linalg.lstsq(columns[:, chosen] / scale[chosen], milliseconds / 1000, rcond=None)[0]
        worst = int(solution.argmin())
        if solution[worst] >= 0:
            break
        del chosen[worst]
    coefficients = np.zeros(3)
    coefficients[chosen] = solution / scale[chosen]
    base, by_first, by_second = coefficients.tolist()
    return base, by_first, by_second
