"""``python3 -m dynamo.mocker``: a worker with simulated engines, started with the flags that manifests have."""

from __future__ import annotations

import sys

from dynamo.errors import ConfigError
from dynamo.mocker.command_line import worker_arguments
from dynamo.mocker.settings import flags_help
from dynamo.runtime.distributed import EXIT_CONFIG
from dynamo.worker import main

if __name__ == "__main__":
    try:
        arguments = worker_arguments(sys.argv[1:])
    except ConfigError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CONFIG)
    if "--help" in arguments:
        print(flags_help())  # noqa: T201 - the worker host knows only its own, and prints them next
    main("mocker", arguments)
