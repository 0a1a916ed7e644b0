"""What ``dynamo serve`` shows: prefixed log lines of all replicas, news, and one line that says what is waited for.

Implements `dynamo.serve.replica.Output`. A thread does the writing: a terminal that is paused (Ctrl-S, a selection)
must stop neither the scheduler nor, through full pipes, the workers. What does not fit into the queue is counted.
"""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple, TextIO

__all__ = ["Console"]

_COLOURS = ("36", "33", "32", "35", "34", "96")
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAME_SECONDS = 0.1
_QUEUE_LINES = 10_000
_CLOSE_SECONDS = 2.0
#: Takes back the line that the cursor is on.
_CLEAR = "\r\x1b[K"
#: Label of our own lines.
_SELF = "serve"


class _Item(NamedTuple):
    kind: Literal["line", "text", "status", "end"]
    label: str = ""
    text: str = ""


class Console:
    """Writes to `stream` (stdout); colours and the status line only on a terminal, and colours not with NO_COLOR.

    Lines are aligned for `labels`, and for those that come later as soon as they come.
    """

    def __init__(self, stream: TextIO | None = None, *, verbose: bool = False, labels: Sequence[str] = ()) -> None:
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._coloured = self._terminal and not os.environ.get("NO_COLOR")
        self._verbose = verbose
        self._queue: queue.Queue[_Item] = queue.Queue(_QUEUE_LINES)
        self._dropped = 0
        self._labels = [_SELF, *labels]
        self._status = ""
        self._status_since = 0.0
        self._thread = threading.Thread(target=self._write_all, name="console", daemon=True)
        self._thread.start()

    def line(self, label: str, text: str) -> None:
        """One log line of the replica called `label`."""
        self._put(_Item("line", label, text))

    def event(self, text: str) -> None:
        """Something that the user should know."""
        self._put(_Item("line", _SELF, text))

    def detail(self, text: str) -> None:
        """Something that helps to find out what goes on; shown with ``--verbose``."""
        if self._verbose:
            self.event(text)

    def text(self, text: str) -> None:
        """A block without prefix, to be copied from."""
        self._put(_Item("text", text=text))

    def status(self, text: str) -> None:
        """What is waited for, shown until the next call; empty: nothing. Not on a terminal: one plain line."""
        if self._terminal:
            self._put(_Item("status", text=text))
        elif text:
            self.event(text)

    def close(self) -> None:
        """Write what is queued and stop; waits two seconds at most for a paused terminal. Idempotent."""
        if self._thread.is_alive():
            self._put(_Item("end"), wait_seconds=_CLOSE_SECONDS)
            self._thread.join(_CLOSE_SECONDS)

    def _put(self, item: _Item, wait_seconds: float = 0.0) -> None:
        try:
            self._queue.put(item, block=wait_seconds > 0, timeout=wait_seconds or None)
        except queue.Full:
            self._dropped += 1

    def _write_all(self) -> None:
        try:
            while self._write_next():
                pass
        except (OSError, ValueError):
            # Whoever read the output is gone (`| head`), or the stream is closed: serving goes on, unseen.
            while self._queue.get().kind != "end":
                pass

    def _write_next(self) -> bool:
        try:
            item = self._queue.get(timeout=_FRAME_SECONDS if self._status else None)
        except queue.Empty:
            self._draw_status()
            return True
        if item.kind == "line":
            self._write(self._prefixed(item.label, item.text))
        elif item.kind == "text":
            self._write(item.text)
        else:
            self._status, self._status_since = item.text, time.monotonic()
            self._clear_status()
        if self._dropped and self._queue.empty():
            dropped, self._dropped = self._dropped, 0
            self._write(self._prefixed(_SELF, f"{dropped} lines were dropped: the terminal was too slow"))
        self._draw_status()
        return item.kind != "end"

    def _write(self, line: str) -> None:
        self._stream.write(f"{_CLEAR}{line}\n" if self._terminal else f"{line}\n")
        if self._queue.empty():
            self._stream.flush()

    def _draw_status(self) -> None:
        if not self._status or not self._terminal:
            return
        waited = time.monotonic() - self._status_since
        frame = _FRAMES[int(waited / _FRAME_SECONDS) % len(_FRAMES)]
        line = f"{frame} {self._status} ({waited:.0f} s)"
        # A line that wraps could not be taken back.
        self._stream.write(f"{_CLEAR}{line[: shutil.get_terminal_size().columns - 1]}")
        self._stream.flush()

    def _clear_status(self) -> None:
        if self._terminal:
            self._stream.write(_CLEAR)
            self._stream.flush()

    def _prefixed(self, label: str, text: str) -> str:
        if label not in self._labels:
            self._labels.append(label)
        padded = f"{label.ljust(max(len(known) for known in self._labels))} |"
        if self._coloured:
            padded = f"\x1b[{_COLOURS[self._labels.index(label) % len(_COLOURS)]}m{padded}\x1b[0m"
        return f"{padded} {text}"
