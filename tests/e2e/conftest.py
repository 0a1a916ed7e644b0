"""Starts `dynamo serve` for tests that need one of their own."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.served import Served, serving


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start a deployment: ``serve("--replicas", "2").until_ready()``."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, env: dict[str, str] | None = None) -> Served:
            directory = tmp_path / f"serve-{next(numbers)}"
            directory.mkdir()
            return stack.enter_context(serving(directory, *arguments, env=env))

        yield start
