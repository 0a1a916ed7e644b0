"""Benchmarks: `nox -s "bench(NAME)"` runs the module `benchmarks.NAME` through the harness."""
