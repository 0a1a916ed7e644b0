"""A process that outlives a killed worker for a moment, to end the engine that would go on without it.

vLLM's engine process does not notice that the process in front of it is gone: it would keep the GPU, or gigabytes, for
ever. `launch` starts one reaper per engine; it reads until its stdin ends, which takes neither time nor a poll.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["Reaper"]

_END_SECONDS = 10.0


class Reaper:
    """The worker's side: while this process lives and has not called :meth:`close`, nothing happens."""

    def __init__(self, directory: Path) -> None:
        # In a session of its own: what is sent to the worker's group, by a terminal or a supervisor, is not for it.
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "dynamo.vllm.reaper", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )

    def note(self, segments: Iterable[str]) -> None:
        """Name shared memory of the engine, for when all that has it open is killed together with the worker."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # somebody ended the reaper
                self._process.stdin.write("".join(f"{name}\n" for name in segments).encode())

    def close(self) -> None:
        """Let it do its work now and end. Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Wait for the end of stdin, which is that of the worker, and remove the engine of the directory in argv."""
    segments = sys.stdin.read().split()
    from dynamo.vllm.processes import EngineProcesses

    EngineProcesses(Path(sys.argv[1]), segments).remove()


if __name__ == "__main__":
    main()
