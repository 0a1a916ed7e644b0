"""Cuts the output of a child into lines, in bounded memory."""

from __future__ import annotations

__all__ = ["MAX_LINE_BYTES", "LineSplitter"]

#: Longer lines are cut; a process that never ends a line must not fill our memory.
MAX_LINE_BYTES = 32 * 1024


class LineSplitter:
    """Feed bytes, get complete lines. Progress bars, which redraw after a carriage return, leave their last state."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that `chunk` completes, without line ends."""
        *complete, rest = (self._rest + chunk).split(b"\n")
        lines = [piece for line in complete for piece in self._pieces(line)]
        *overlong, self._rest = self._pieces(rest)
        return [_text(line) for line in lines + overlong]

    def finish(self) -> list[str]:
        """What came after the last line end, if anything."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []

    def _pieces(self, line: bytes) -> list[bytes]:
        if len(line) <= self._max:
            return [line]
        return [line[start : start + self._max] for start in range(0, len(line), self._max)]


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")
