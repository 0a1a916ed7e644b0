"""``python3 -m dynamo.reference``: a worker that serves the reference engine."""

from __future__ import annotations

from dynamo.worker import main

if __name__ == "__main__":
    main("reference")
