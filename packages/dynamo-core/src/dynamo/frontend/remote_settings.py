"""Router settings that an operator changes in etcd while frontends run (DESIGN 4.5)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dynamo.router.settings import RouterSettings
from dynamo.runtime.remote_config import RemoteConfig
from dynamo.runtime.settings import RuntimeSettings

__all__ = ["follow_router_settings"]

logger = logging.getLogger(__name__)

#: What is made once, when a process starts: a change of these waits for the next start.
_FIXED = ("router_mode", "router_use_kv_events", "explain", "router_decision_log_size", "router_shadow_modes")


def follow_router_settings(
    runtime: RuntimeSettings,
    router: RouterSettings,
    apply: Callable[[RouterSettings], None],
    *,
    measures: bool,
) -> RemoteConfig | None:
    """Call `apply` at every change of ``/dynamo/config/NAMESPACE/router``; None where discovery is not etcd.

    The caller closes what is returned. Without `measures` nobody counts what workers are sent: then a queue cannot be
    switched on.

    Raises:
        ConfigError: etcd's settings are wrong.
        PluginError: its client library is not installed.
    """
    fixed = _FIXED if measures else (*_FIXED, "router_queue_threshold")
    url = runtime.discovery_url()
    if not url.startswith("etcd:"):
        return None

    def changed(settings: RouterSettings) -> None:
        kept = {name: getattr(router, name) for name in fixed if getattr(settings, name) != getattr(router, name)}
        if kept:
            logger.warning("%s cannot change while a frontend runs; restart it", ", ".join(kept))
        logger.info("router settings changed in etcd")
        apply(settings.model_copy(update=kept))

    config = RemoteConfig(url, runtime.namespace)
    config.watch(router.section, RouterSettings, changed, base=router)
    config.start()
    return config
