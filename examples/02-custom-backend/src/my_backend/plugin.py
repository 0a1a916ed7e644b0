"""Tells dynamo that the backend exists. The engine itself is imported when somebody chooses it."""

from __future__ import annotations

from dynamo.hookspecs import hookimpl
from dynamo.protocols.engine import EngineFactory
from dynamo.protocols.registry import Registry

DYNAMO_PLUGIN_API = "1.0"


@hookimpl
def dynamo_register_engines(engines: Registry[EngineFactory]) -> None:
    """Register under the name that ``--backend`` takes."""
    engines.register("my-backend", "my_backend.engine:ReverseEngine", summary="answers with the words in reverse order")
