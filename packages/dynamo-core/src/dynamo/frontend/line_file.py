"""A file of JSON lines that a thread writes: the event loop only puts what makes a line on a queue.

Used by the access log and the request log.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from io import RawIOBase
from typing import Any, BinaryIO

import msgspec

from dynamo.errors import ConfigError

__all__ = ["QUEUE_BYTES", "QUEUE_LINES", "LineFile"]

logger = logging.getLogger(__name__)

#: Lines that may wait for the disk, and bytes of what they are made of; beyond it they are dropped and counted.
QUEUE_LINES = 10_000
QUEUE_BYTES = 64 << 20


class LineFile:
    """Appends to a file, or to standard output for ``-``. Several processes may append to one file."""

    def __init__(self, target: str, *, what: str, param: str) -> None:
        """`what` names the file in messages, `param` is the setting that gave it.

        Raises:
            ConfigError: the file cannot be opened.
        """
        self._what = what
        try:
            self._file: RawIOBase | BinaryIO = sys.stdout.buffer if target == "-" else _open(target)
        except OSError as error:
            flag = f"--{param.replace('_', '-')}"
            raise ConfigError(
                f"cannot open the {what} {target}: {error.strerror}", param=param, hint=f"check {flag}"
            ) from error
        self.dropped = 0
        self._waiting_bytes = 0
        # Counted down by the thread and up by the event loop.
        self._lock = threading.Lock()
        self._lines: queue.Queue[tuple[Callable[[], Mapping[str, Any]], int] | None] = queue.Queue(QUEUE_LINES)
        self._thread = threading.Thread(target=self._run, name=what.replace(" ", "-"), daemon=True)
        self._thread.start()

    def put(self, make: Callable[[], Mapping[str, Any]], size: int = 0) -> None:
        """Queue one line, which `make` gives when the thread comes to it; `size` bytes are held until then."""
        if self._waiting_bytes + size > QUEUE_BYTES:
            self.dropped += 1
            return
        try:
            self._lines.put_nowait((make, size))
        except queue.Full:
            self.dropped += 1
            return
        with self._lock:
            self._waiting_bytes += size

    def close(self) -> None:
        """Write what is queued and close, within a few seconds."""
        try:
            self._lines.put(None, timeout=1.0)
        except queue.Full:
            logger.warning("the %s is stuck; %d lines are lost", self._what, self._lines.qsize())
            return
        self._thread.join(2.0)

    def _run(self) -> None:
        failing = False
        while (entry := self._lines.get()) is not None:
            make, size = entry
            with self._lock:
                self._waiting_bytes -= size
            try:
                self._file.write(msgspec.json.encode(make()) + b"\n")
                if self._lines.empty():
                    self._file.flush()
                failing = False
            except (ValueError, TypeError, OverflowError):
                # Nobody looks at this thread: without it all further lines would be lost, and memory with them.
                self.dropped += 1
                logger.exception("a line of the %s cannot be made", self._what)
            except OSError as error:
                self.dropped += 1
                if not failing:
                    logger.warning("the %s cannot be written: %s", self._what, error)
                failing = True
        if self._file is not sys.stdout.buffer:
            self._file.close()


def _open(target: str) -> RawIOBase:
    # Readable by its owner alone: lines name API keys, and may hold what users wrote.
    descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    # Unbuffered: a line that a full disk refuses is lost, and does not come back at every later write.
    return os.fdopen(descriptor, "ab", buffering=0)
