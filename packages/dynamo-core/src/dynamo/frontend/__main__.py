"""``python3 -m dynamo.frontend``: one frontend process."""

from __future__ import annotations

import sys
from typing import Any

import click

from dynamo.config import settings_from_flags, settings_options
from dynamo.errors import DynamoError
from dynamo.frontend.app import Frontend
from dynamo.frontend.settings import FrontendSettings
from dynamo.router.settings import RouterSettings
from dynamo.runtime.distributed import EXIT_CONFIG, DistributedRuntime, run_process
from dynamo.runtime.settings import RuntimeSettings


@click.command()
@settings_options(FrontendSettings, RouterSettings, RuntimeSettings)
def main(**flags: Any) -> None:
    """Serve the OpenAI API for the workers of this namespace."""
    try:
        settings = settings_from_flags(FrontendSettings, flags)
        router = settings_from_flags(RouterSettings, flags)
        runtime_settings = settings_from_flags(RuntimeSettings, flags)
    except DynamoError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CONFIG)

    async def body(runtime: DistributedRuntime) -> None:
        await Frontend(settings, router, runtime).run()

    run_process(runtime_settings, body, "dynamo-frontend")


if __name__ == "__main__":
    main(prog_name="python3 -m dynamo.frontend")
