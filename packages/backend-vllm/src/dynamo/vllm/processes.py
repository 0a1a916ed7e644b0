"""The processes of an engine, so that none outlives its worker and nothing of theirs stays in /dev/shm.

vLLM ends its processes when all is well. When one hangs, or the worker is killed, they would run on, and where they
are killed themselves their message queues (160 MiB each) and semaphores would stay. They are known by their
environment: `launch` has every engine keep its temporary files in a directory of its own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["EngineProcesses"]

#: Where the C library keeps what shm_open makes.
_SHARED_MEMORY = Path("/", "dev", "shm")
#: A line of /proc/PID/maps, the inode's number in it. The name there is the one that a semaphore was made under, which
#: is not the one that it has since.
_MAPPED = re.compile(rf"^\S+ \S+ \S+ \S+ (\d+) +{_SHARED_MEMORY}/", re.MULTILINE)
_KILL_SECONDS = 5.0


class EngineProcesses:
    """All processes whose temporary files belong into `directory`, whoever started them."""

    def __init__(self, directory: Path, segments: Iterable[str] = ()) -> None:
        self._directory = directory
        self.segments = set(segments)
        """Names of shared memory that they have had, which goes with them."""

    def members(self) -> list[psutil.Process]:
        """Those that live now. Python's resource tracker is not among them: it cleans up after the others."""
        return [process for process in psutil.process_iter() if self._is_member(process)]

    def note_shared_memory(self) -> None:
        """Remember the segments that they map now, to remove them when the processes are gone."""
        mapped: set[int] = set()
        for process in self.members():
            with suppress(OSError):  # it ended meanwhile, or this is not Linux
                mapped.update(map(int, _MAPPED.findall(Path(f"/proc/{process.pid}/maps").read_text("utf-8"))))
        if mapped:
            with os.scandir(_SHARED_MEMORY) as entries:
                self.segments.update(entry.name for entry in entries if entry.inode() in mapped)

    def remove(self) -> None:
        """End those that still live, and remove the files and the shared memory that they leave. Idempotent."""
        self.note_shared_memory()
        living = self.members()
        for process in living:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(living, timeout=_KILL_SECONDS)
        for name in self.segments:
            (_SHARED_MEMORY / name).unlink(missing_ok=True)
        self.segments.clear()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _is_member(self, process: psutil.Process) -> bool:
        try:
            ours = process.environ().get("TMPDIR") == str(self._directory)
            return ours and not any("resource_tracker" in part for part in process.cmdline())
        except psutil.Error:  # it ended meanwhile, or is another user's
            return False
