"""One child process: start it, follow its output, stop it with everything it started.

`dynamo.serve.replica` decides when; this module knows how. Each child leads a session of its own, so its process group
is all that it started and Ctrl-C in the terminal reaches ``dynamo serve`` alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from dynamo.serve import guardian, launcher
from dynamo.serve.lines import LineSplitter

__all__ = ["ChildProcess", "Guardian"]

#: How often a process group is looked at while it ends; the kernel offers no event for a group.
_GROUP_POLL_SECONDS = 0.05
#: What a dead leader left behind gets at most between SIGTERM and SIGKILL.
_LEFTOVER_GRACE_SECONDS = 3.0
#: For the output that is still in the pipe when a group has ended.
_OUTPUT_GRACE_SECONDS = 1.0
_READ_BYTES = 64 * 1024


class Guardian:
    """The running `dynamo.serve.guardian` and what it knows."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._pipe = -1
        self._groups: set[int] = set()

    async def start(self) -> None:
        """Start it, unless it runs; one that was killed is replaced and told everything again."""
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            self._close_pipe()
            read, self._pipe = os.pipe()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *_python_script(guardian.__file__),
                    stdin=read,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
            finally:
                os.close(read)
            self._tell("".join(f"+{group}\n" for group in sorted(self._groups)))

    def add(self, group: int) -> None:
        """Have `group` stopped when this process dies."""
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def discard(self, group: int) -> None:
        """`group` has ended."""
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    async def close(self) -> None:
        """End it; groups that it still knows are stopped. Idempotent."""
        self._close_pipe()
        if self._process is not None:
            await self._process.wait()

    def _tell(self, lines: str) -> None:
        if self._pipe == -1:
            return
        try:
            os.write(self._pipe, lines.encode())
        except BrokenPipeError:
            # Somebody killed the guardian: `start`, before the next child, replaces it.
            return

    def _close_pipe(self) -> None:
        if self._pipe != -1:
            os.close(self._pipe)
            self._pipe = -1


class ChildProcess:
    """A process group led by one command. Made by :meth:`start`; :meth:`wait` and :meth:`stop` have one caller."""

    def __init__(self, process: asyncio.subprocess.Process, guard: Guardian, pump: asyncio.Task[None]) -> None:
        self._process = process
        self._guard = guard
        self._pump = pump

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        working_directory: str | None,
        guard: Guardian,
        on_line: Callable[[str], None],
    ) -> ChildProcess:
        """Start `argv` with exactly `env`; `on_line` gets its stdout and stderr, merged, line by line.

        A command that does not exist ends at once with `launcher.EXIT_CANNOT_START` and a line that says so.
        """
        await guard.start()
        gate_read, gate_write = os.pipe()
        output_read, output_write = os.pipe()
        pump = asyncio.create_task(_pump_lines(output_read, on_line))
        try:
            # Pipes of our own, not asyncio's: with those, `wait` of some Python versions returns only when every
            # descendant has closed them, and a grandchild would hide the death of the command.
            process = await asyncio.create_subprocess_exec(
                *_python_script(launcher.__file__),
                *argv,
                stdin=gate_read,
                stdout=output_write,
                stderr=output_write,
                env=dict(env),
                cwd=working_directory,
                start_new_session=True,
            )
            child = cls(process, guard, pump)
            guard.add(process.pid)
            os.write(gate_write, b"\n")
        finally:
            # Without the byte the closed gate ends the launcher: an interrupted start leaves nothing.
            for descriptor in (gate_read, gate_write, output_write):
                os.close(descriptor)
        return child

    @property
    def pid(self) -> int:
        """Process id of the command, which is also its group id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the command; its exit code, or minus the signal that ended it. What it left behind is killed."""
        code = await self._process.wait()
        self.kill()
        self._guard.discard(self.pid)
        # The pipe ends with the group. A process that left the group may hold it open: do not wait for that one.
        await asyncio.wait([self._pump], timeout=_OUTPUT_GRACE_SECONDS)
        self._pump.cancel()
        return code

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM to the command, so that it can drain; after `grace_seconds` SIGKILL to its whole group.

        What outlives the command gets SIGTERM too, and a few seconds of the grace.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_seconds
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), grace_seconds)
            except asyncio.TimeoutError:
                self.kill()
        deadline = min(deadline, loop.time() + _LEFTOVER_GRACE_SECONDS)
        alive = self._signal_group(signal.SIGTERM)
        while alive and loop.time() < deadline:
            await asyncio.sleep(_GROUP_POLL_SECONDS)
            alive = self._signal_group(0)
        await self.wait()

    def kill(self) -> None:
        """SIGKILL to the whole group, now."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> bool:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS answers EPERM when only zombies are left
            return False
        return True


def _python_script(path: str) -> list[str]:
    # -I and -S: no site-packages, no PYTHON* variables; they matter to the command, not to these few lines.
    return [sys.executable, "-I", "-S", path]


async def _pump_lines(descriptor: int, on_line: Callable[[str], None]) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    splitter = LineSplitter()
    try:
        while chunk := await reader.read(_READ_BYTES):
            for line in splitter.feed(chunk):
                on_line(line)
    finally:
        transport.close()
        for line in splitter.finish():
            on_line(line)
