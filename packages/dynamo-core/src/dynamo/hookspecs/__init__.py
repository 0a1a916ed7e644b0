"""The hooks: how engines, routers, planes, discovery backends, schedulers and commands reach the core.

A plugin is a module named by an entry point in the group ``dynamo``. Hooks only register; they run once at start-up,
get a typed registrar and return None. The hot path then goes through the Protocol objects of `dynamo.protocols`,
never through a hook call. An argument may be added to a hook, never renamed or removed.

A plugin module says which API it was written for::

    from dynamo.hookspecs import hookimpl

    DYNAMO_PLUGIN_API = "1.0"

    @hookimpl
    def dynamo_register_engines(engines):
        engines.register("my-backend", "my_backend.engine:MyEngine", summary="my engine")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pluggy

__all__ = ["PLUGIN_API_VERSION", "PROJECT_NAME", "hookimpl", "hookspec"]

#: (major, minor) of the hooks and Protocols. A plugin of another major is refused.
PLUGIN_API_VERSION = (1, 0)
#: pluggy project name and entry-point group.
PROJECT_NAME = "dynamo"

_F = TypeVar("_F", bound=Callable[..., Any])

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
_hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


def hookimpl(function: _F) -> _F:
    """Mark a module-level function as an implementation of the hook it is named after."""
    return _hookimpl(function)
