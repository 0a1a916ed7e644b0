"""``python3 -m dynamo.mocker``: a worker with simulated engines, started with the flags that manifests have."""

from __future__ import annotations

import sys

from dynamo.mocker.command_line import worker_arguments
from dynamo.mocker.settings import MockerSettings
from dynamo.runtime.distributed import config_errors_end_the_process
from dynamo.worker import main

if __name__ == "__main__":
    with config_errors_end_the_process():
        arguments = worker_arguments(sys.argv[1:])
    main("mocker", arguments, engine_settings=MockerSettings)
