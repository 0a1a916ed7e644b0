"""`python -m benchmarks NAME`: what `nox -s "bench(NAME)"` calls."""

import os
import sys

# Before anything imports numpy: with more BLAS threads than idle cores, its threads spin and measure each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.harness.cli import main

sys.exit(main())
