"""The typed face of pluggy: loads plugins once, keeps their registrations, and names what is broken.

Everybody who needs a part by name asks :func:`plugins`; nobody else touches pluggy.
"""

from dynamo.plugins.loading import PluginReport, Plugins, load_plugins, plugins
from dynamo.plugins.registry import NamedRegistry, Registration

__all__ = ["NamedRegistry", "PluginReport", "Plugins", "Registration", "load_plugins", "plugins"]
