from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from dynamo.reference import blas


def _threads() -> int | None:
    for library in blas.blas_libraries(Path(np.__file__).parent):
        for setter in blas.SYMBOLS:
            symbol = setter.replace("_set_", "_get_")
            function = getattr(library, symbol, None)
            if function is not None:
                function.restype = ctypes.c_int
                return function()
    return None


def test_the_thread_count_takes_effect():
    if _threads() is None:
        pytest.skip("numpy was not built with the OpenBLAS of its wheels")
    assert blas.set_blas_threads(2)
    assert _threads() == 2
    assert blas.set_blas_threads(1)
    assert _threads() == 1
    square = np.ones((64, 64), np.float32)
    assert (square @ square == 64).all()


def test_another_blas_is_told_but_no_error(tmp_path, caplog):
    assert blas.set_blas_threads(1, tmp_path / "numpy") is False
    assert "--threads has no effect" in caplog.text
