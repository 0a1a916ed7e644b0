"""``python3 -m dynamo.echo``: a worker with the echo engine."""

from __future__ import annotations

from dynamo.echo.settings import EchoSettings
from dynamo.worker import main

if __name__ == "__main__":
    main("echo", engine_settings=EchoSettings)
