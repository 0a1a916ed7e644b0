"""``python3 -m dynamo.reference``: a worker that serves the reference engine."""

from __future__ import annotations

from dynamo.reference.settings import ReferenceSettings
from dynamo.worker import main

if __name__ == "__main__":
    main("reference", engine_settings=ReferenceSettings)
