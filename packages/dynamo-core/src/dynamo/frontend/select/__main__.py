"""``python3 -m dynamo.frontend.select``: one select service."""

from __future__ import annotations

from typing import Any

import click

from dynamo.config import settings_from_flags, settings_options
from dynamo.frontend.select.app import SelectService
from dynamo.frontend.select.settings import SelectSettings
from dynamo.router.settings import RouterSettings
from dynamo.runtime.distributed import DistributedRuntime, config_errors_end_the_process, run_process
from dynamo.runtime.garbage import collect_seldom
from dynamo.runtime.settings import RuntimeSettings

#: Who asks for a worker by its cache wants this one; flags and environment go first.
_DEFAULTS = {"router_mode": "kv"}


@click.command()
@settings_options(SelectSettings, RouterSettings)
def main(**flags: Any) -> None:
    """Choose workers for programs that send the requests themselves. The default --router-mode is kv here."""
    with config_errors_end_the_process():
        settings = settings_from_flags(SelectSettings, flags)
        router = settings_from_flags(RouterSettings, flags, file=_DEFAULTS)
        # It talks to nobody but its clients and the engines' sockets.
        runtime_settings = RuntimeSettings(
            discovery_backend="mem", event_plane="", log_level=settings.log_level, log_format=settings.log_format
        )

    async def body(runtime: DistributedRuntime) -> None:
        service = SelectService(settings, router, runtime)
        collect_seldom()
        await service.run()

    run_process(runtime_settings, body, "dynamo-select")


if __name__ == "__main__":
    main(prog_name="python3 -m dynamo.frontend.select")
