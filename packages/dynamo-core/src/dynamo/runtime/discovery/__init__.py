"""Discovery backends of dynamo-core, and the one way to get a backend: :func:`create_discovery`.

The runtime calls it once per process with ``RuntimeSettings.discovery_url()``.
"""

from __future__ import annotations

from dynamo.plugins import plugins
from dynamo.protocols.discovery import Discovery

__all__ = ["create_discovery"]

_ALIASES = {"mem": "memory"}


def create_discovery(url: str) -> Discovery:
    """The discovery backend whose name is the scheme of `url`, not started yet.

    ``memory://`` (also ``mem://``) and ``file:///directory`` are built in. A bare name stands for ``name://``.

    Raises:
        PluginNotFound: nobody registered the scheme; the hint lists the names there are.
        PluginError: the backend cannot be imported.
        ConfigError: the backend refuses the rest of the URL.
    """
    scheme, _, rest = url.partition("://")
    name = _ALIASES.get(scheme.lower(), scheme.lower())
    return plugins().discovery_backends.get(name)(f"{name}://{rest}")
