"""``python3 -m dynamo.frontend``: one frontend process."""

from __future__ import annotations

import sys
from typing import Any

import click

from dynamo.config import settings_from_flags, settings_options
from dynamo.config.foreign_flags import without_foreign_flags
from dynamo.frontend.app import Frontend
from dynamo.frontend.foreign_flags import FOREIGN_FLAGS
from dynamo.frontend.settings import FrontendSettings
from dynamo.router.settings import RouterSettings
from dynamo.runtime.distributed import DistributedRuntime, config_errors_end_the_process, run_process
from dynamo.runtime.garbage import collect_seldom
from dynamo.runtime.settings import RuntimeSettings


@click.command()
@settings_options(FrontendSettings, RouterSettings, RuntimeSettings)
def main(**flags: Any) -> None:
    """Serve the OpenAI API for the workers of this namespace."""
    with config_errors_end_the_process():
        settings = settings_from_flags(FrontendSettings, flags)
        router = settings_from_flags(RouterSettings, flags)
        runtime_settings = settings_from_flags(RuntimeSettings, flags)

    async def body(runtime: DistributedRuntime) -> None:
        frontend = Frontend(settings, router, runtime)
        collect_seldom()
        await frontend.run()

    run_process(runtime_settings, body, "dynamo-frontend")


if __name__ == "__main__":
    main(list(without_foreign_flags(sys.argv[1:], FOREIGN_FLAGS)), prog_name="python3 -m dynamo.frontend")
