"""One JSON line per finished HTTP request, of any status."""

from __future__ import annotations

import time
from typing import Any

from dynamo.frontend.line_file import LineFile

__all__ = ["AccessLog"]


class AccessLog(LineFile):
    """Appends to a file, or to standard output for ``-``."""

    def __init__(self, target: str) -> None:
        """Raises ConfigError when the file cannot be opened."""
        super().__init__(target, what="access log", param="access_log")

    def write(self, line: dict[str, Any]) -> None:
        """Queue one line; the time is added."""
        line["time_unix_seconds"] = round(time.time(), 6)
        self.put(lambda: line)
