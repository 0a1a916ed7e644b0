"""One JSON line per finished request, written by a thread: the event loop only puts a small tuple on a queue."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from dynamo.errors import ConfigError

__all__ = ["AccessLog"]

logger = logging.getLogger(__name__)

#: Lines that may wait for the disk; beyond it they are dropped and counted.
QUEUE_LINES = 10_000


class AccessLog:
    """Appends to a file, or to standard output for ``-``."""

    def __init__(self, target: str) -> None:
        """Raises ConfigError when the file cannot be opened."""
        try:
            # Unbuffered: a line that a full disk refuses is lost, and does not come back at every later write.
            self._file: RawIOBase | BinaryIO = (
                sys.stdout.buffer if target == "-" else Path(target).open("ab", buffering=0)  # noqa: SIM115
            )
        except OSError as error:
            raise ConfigError(
                f"cannot open the access log {target}: {error.strerror}", param="access_log", hint="check --access-log"
            ) from error
        self.dropped = 0
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(QUEUE_LINES)
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def write(self, line: dict[str, Any]) -> None:
        """Queue one line; the time is added."""
        line["time_unix_seconds"] = round(time.time(), 6)
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued and close, within a few seconds."""
        try:
            self._lines.put(None, timeout=1.0)
        except queue.Full:
            logger.warning("the access log is stuck; %d lines are lost", self._lines.qsize())
            return
        self._thread.join(2.0)

    def _run(self) -> None:
        failing = False
        while True:
            line = self._lines.get()
            if line is None:
                break
            try:
                self._file.write(msgspec.json.encode(line) + b"\n")
                if self._lines.empty():
                    self._file.flush()
                failing = False
            except OSError as error:
                self.dropped += 1
                if not failing:
                    logger.warning("the access log cannot be written: %s", error)
                failing = True
        if self._file is not sys.stdout.buffer:
            self._file.close()
