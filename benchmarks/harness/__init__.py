"""One harness for every benchmark: rows, measuring, reports, plots and the command line.

A benchmark is a module with a docstring and ``run(options: Options) -> Iterator[Row]``; it measures its reference in
the same run, alternating with what it compares, so that both see the same machine.
"""
