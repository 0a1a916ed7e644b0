"""Keeps the end of what the engine's processes print, for the error that says why one of them ended.

They inherit the worker's stdout and stderr. While they are started those two lead into a pipe, whose other end is
copied to the worker's own stderr line by line for as long as a process of the engine has it open. So tracebacks,
messages of libraries and vLLM's log lines are all seen, as they come and in the tail.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import deque
from types import TracebackType

from typing_extensions import Self

__all__ = ["OutputTail"]

_KEPT_LINES = 400
_SHOWN_LINES = 20
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
#: The last line of a traceback, behind what vLLM puts before each line.
_RAISED = re.compile(r"(?:^|[\s\]])(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Interrupt)|safetensors\w*): (.+)$")
#: What processes say about the end of another one.
_CONSEQUENCE = re.compile(
    r"initialization failed|EngineDeadError|[Ss]ee (root cause|stack trace)|EngineCore encountered"
)


class OutputTail:
    """A context manager: processes that are started within it write into the tail, until they end."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._saved: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        sys.stdout.flush()
        sys.stderr.flush()
        read, write = os.pipe()
        self._saved = (os.dup(1), os.dup(2))
        copy_to = os.dup(2)
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(write)
        threading.Thread(target=self._copy, args=(read, copy_to), name="vllm-output", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in enumerate(self._saved, start=1):
            os.dup2(saved, number)
            os.close(saved)
        self._saved = None

    def text(self) -> str:
        """The last lines, each with an indent."""
        return "\n".join(f"  {line}" for line in list(self._lines)[-_SHOWN_LINES:])

    def cause(self) -> str | None:
        """The last exception that somebody printed and that is not only the consequence of another."""
        for line in reversed(self._lines):
            raised = _RAISED.search(line)
            if raised is not None and not _CONSEQUENCE.search(line):
                return f"{raised[1]}: {raised[2]}"
        return None

    def _copy(self, read: int, copy_to: int) -> None:
        with open(read, "rb", buffering=0) as pipe, open(copy_to, "wb", buffering=0) as copy:
            rest = b""
            while chunk := pipe.read(65536):
                copy.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                self._lines.extend(_ESCAPES.sub("", line.decode("utf-8", "replace")).rstrip() for line in lines)
