"""The ``dynamo`` program: one group of subcommands, all of them from plugins.

The console script calls :func:`main`. This package imports no pydantic, numpy, msgspec, torch or engine before a
subcommand is chosen, so that ``dynamo --help`` answers in a third of a second.
"""

from dynamo.cli.program import main

__all__ = ["main"]
