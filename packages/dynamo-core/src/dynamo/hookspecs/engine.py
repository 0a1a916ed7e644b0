"""Engines: what computes tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo.hookspecs import hookspec

if TYPE_CHECKING:
    from dynamo.protocols.engine import EngineFactory
    from dynamo.protocols.registry import Registry

__all__ = ["dynamo_register_engines"]


@hookspec
def dynamo_register_engines(engines: Registry[EngineFactory]) -> None:
    """Register engines by the name that ``--backend`` takes.

    The target makes an :class:`~dynamo.protocols.engine.LLMEngine` of :class:`~dynamo.protocols.engine.EngineOptions`.
    """
