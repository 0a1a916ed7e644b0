"""The number of threads that numpy's matrix products use.

The environment variables of BLAS libraries are read when numpy is first imported, which is long before an engine's
flags are parsed, so the count is set through the loaded library. The engine calls this once, from its own thread.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import numpy as np

__all__ = ["set_blas_threads"]

logger = logging.getLogger(__name__)

#: Symbol names of OpenBLAS: numpy's wheels (64-bit integers, then 32-bit ones), then distributions' builds.
SYMBOLS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def set_blas_threads(count: int, package: Path = Path(np.__file__).parent) -> bool:
    """Make numpy's BLAS use `count` threads, for the whole process; False when the library is not OpenBLAS.

    `package` is where numpy is installed.
    """
    for library in blas_libraries(package):
        for symbol in SYMBOLS:
            function = getattr(library, symbol, None)
            if function is not None:
                function.argtypes, function.restype = [ctypes.c_int], None
                function(count)
                return True
    logger.warning("numpy's BLAS is not a bundled OpenBLAS: --threads has no effect; set its own environment variable")
    return False


def blas_libraries(package: Path) -> list[ctypes.CDLL]:
    """Libraries that numpy's wheel bundles (Linux, macOS, Windows layouts); opening one again only adds a reference."""
    folders = (package.parent / "numpy.libs", package / ".dylibs", package / ".libs")
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if "openblas" in file.name]
    return [ctypes.CDLL(str(file)) for file in sorted(files)]
