"""``python3 -m dynamo.router``: one standalone router."""

from __future__ import annotations

from typing import Any

import click

from dynamo.config import settings_from_flags, settings_options
from dynamo.router.settings import RouterSettings
from dynamo.router.standalone.service import RouterService, worker_endpoint
from dynamo.router.standalone.settings import RouterServiceSettings
from dynamo.runtime.distributed import DistributedRuntime, config_errors_end_the_process, run_process
from dynamo.runtime.garbage import collect_seldom
from dynamo.runtime.settings import RuntimeSettings

#: Who starts a router of its own wants this one; flags and environment go first.
_DEFAULTS = {"router_mode": "kv"}


@click.command()
@settings_options(RouterServiceSettings, RouterSettings, RuntimeSettings)
def main(**flags: Any) -> None:
    """Route requests of token ids to the workers of one endpoint. The default --router-mode is kv here."""
    with config_errors_end_the_process():
        settings = settings_from_flags(RouterServiceSettings, flags)
        router = settings_from_flags(RouterSettings, flags, file=_DEFAULTS)
        runtime_settings = settings_from_flags(RuntimeSettings, flags)
        # It lives where its workers live, whatever namespace the environment names.
        runtime_settings = runtime_settings.model_copy(update={"namespace": worker_endpoint(settings).namespace})

    async def body(runtime: DistributedRuntime) -> None:
        service = RouterService(settings, router, runtime)
        collect_seldom()
        await service.run()

    run_process(runtime_settings, body, "dynamo-router")


if __name__ == "__main__":
    main(prog_name="python3 -m dynamo.router")
