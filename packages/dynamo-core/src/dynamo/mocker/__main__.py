"""``python3 -m dynamo.mocker``: a worker with simulated engines, started with the flags that manifests have."""

from __future__ import annotations

import sys

from dynamo.mocker.command_line import worker_arguments
from dynamo.worker import main

if __name__ == "__main__":
    main("mocker", worker_arguments(sys.argv[1:]))
