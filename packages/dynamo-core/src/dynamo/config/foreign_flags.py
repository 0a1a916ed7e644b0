"""Flags of other launchers' commands that have no meaning here: taken out of a command line, and named in a warning.

People bring commands and manifests that they have. A flag that would change what they get is refused like any unknown
one; a flag whose purpose is served in another way, or that tunes what does not exist here, must not stop them. Used by
the frontend and by backends.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

__all__ = ["ForeignFlag", "without_foreign_flags"]

logger = logging.getLogger(__name__)

#: A negative number is a value.
_FLAG = re.compile(r"--?[A-Za-z]")


class ForeignFlag(NamedTuple):
    """A flag that is taken and ignored."""

    values: int | None
    """How many arguments follow it; None: all up to the next flag."""
    reason: str
    """Why it is ignored, or what serves its purpose here."""


def without_foreign_flags(argv: Iterable[str], foreign: Mapping[str, ForeignFlag]) -> Iterator[str]:
    """`argv` without the flags of `foreign` and their values; underscores in a flag count as hyphens."""
    skip: int | None = 0
    for argument in argv:
        is_flag = _FLAG.match(argument) is not None
        if not is_flag and skip != 0:
            skip = skip - 1 if skip else skip
            continue
        name, equals, _ = argument.partition("=")
        known = foreign.get(name.replace("_", "-")) if is_flag else None
        if known is not None:
            skip = 0 if equals else known.values
            logger.warning("%s has no meaning here and is ignored: %s", name, known.reason)
            continue
        skip = 0
        yield argument
