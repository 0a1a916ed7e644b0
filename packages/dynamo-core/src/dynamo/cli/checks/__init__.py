"""The checks of ``dynamo doctor``: each looks at one thing and says what it found and how to fix it.

A check is a function without arguments that gives findings and never raises; `dynamo.cli.doctor` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dynamo.cli.checks.environment import (
    check_engines,
    check_fast_tokenizer,
    check_namespace,
    check_packages,
    check_plugins,
    check_python,
    check_upstream_clash,
)
from dynamo.cli.checks.finding import Finding, Level
from dynamo.cli.checks.machine import (
    check_file_descriptors,
    check_gpus,
    check_memory,
    check_model_cache,
    check_port,
    check_shared_memory,
    check_state_directory,
)
from dynamo.cli.checks.services import check_etcd, check_nats

__all__ = ["CHECKS", "Finding", "Level"]

CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    check_python,
    check_packages,
    check_upstream_clash,
    check_namespace,
    check_plugins,
    check_engines,
    check_fast_tokenizer,
    check_gpus,
    check_memory,
    check_shared_memory,
    check_file_descriptors,
    check_port,
    check_state_directory,
    check_model_cache,
    check_etcd,
    check_nats,
)
