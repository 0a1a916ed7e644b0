"""One supervised replica of a component: started, watched, started again when it dies, stopped.

`dynamo.serve.scheduler` keeps as many of these as a component should have.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from dynamo.errors import EngineError
from dynamo.protocols.scheduling import ComponentSpec, ReplicaState, ReplicaStatus
from dynamo.serve.allocator import free_port
from dynamo.serve.backoff import FATAL_EXIT_CODES, Backoff, RestartPolicy
from dynamo.serve.probe import http_get
from dynamo.serve.process import ChildProcess, Guardian

__all__ = ["Output", "Replica", "command_line", "describe_exit"]

_SYSTEM_HOST = "127.0.0.1"
_PROBE_STARTING_SECONDS = 0.1
_PROBE_RUNNING_SECONDS = 2.0
#: Log lines kept for the error message of a replica that cannot start.
_TAIL_LINES = 20


class Output(Protocol):
    """Where log lines and news go; must not block."""

    def line(self, label: str, text: str) -> None:
        """One log line of the replica called `label`."""
        ...

    def event(self, text: str) -> None:
        """Something that the user should know."""
        ...

    def detail(self, text: str) -> None:
        """Something that helps to find out what goes on."""
        ...


class Replica:
    """Runs from :meth:`start` until :meth:`stop`, or until it is given up."""

    def __init__(
        self,
        spec: ComponentSpec,
        index: int,
        *,
        environ: Mapping[str, str],
        gpus: Sequence[str],
        guard: Guardian,
        policy: RestartPolicy,
        output: Output,
    ) -> None:
        self.index = index
        self.gpus = tuple(gpus)
        self.label = spec.name if spec.replicas == 1 and index == 0 else f"{spec.name}-{index}"
        self.spec = spec
        #: Of the process that runs now.
        self._system_port = 0
        self._environ = environ
        self._guard = guard
        self._backoff = Backoff(policy)
        self._output = output
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._state: ReplicaState = "starting"
        self._message = ""
        self._restarts = 0
        self._child: ChildProcess | None = None
        self._task: asyncio.Task[None] | None = None
        #: Set once the first outcome is known: ready, given up or stopped.
        self._settled = asyncio.Event()
        self._failure: EngineError | None = None

    def start(self) -> None:
        """Start the process, and keep it running."""
        self._task = asyncio.create_task(self._supervise())

    async def wait_ready(self) -> None:
        """Return once the replica was ready.

        Raises:
            EngineError: it was given up or stopped before; the hint ends with its last log lines.
        """
        await self._settled.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """SIGTERM, grace, SIGKILL; returns when nothing is left. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._state, self._message = "stopped", ""
        if not self._settled.is_set():
            self._failure = EngineError(f"{self.label} was stopped before it was ready")
            self._settled.set()

    def kill(self) -> None:
        """SIGKILL now."""
        if self._child is not None:
            self._child.kill()

    async def ask(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page of the system port; status 0 when nobody answers."""
        return await http_get(_SYSTEM_HOST, self._system_port, path)

    def status(self) -> ReplicaStatus:
        """The replica as it is."""
        pid = self._child.pid if self._child is not None else None
        return ReplicaStatus(self.index, self._state, pid, self._restarts, self._message)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._state, self._message = "starting", ""
            started = loop.time()
            try:
                code, was_ready = await self._run_once()
            except (OSError, ValueError) as error:  # ValueError: a zero byte in an argument
                self._give_up(f"cannot be started: {error}")
                return
            reason = describe_exit(code)
            delay = self._backoff.delay_seconds(code, was_ready=was_ready, uptime_seconds=loop.time() - started)
            if delay is None:
                self._give_up(reason if code in FATAL_EXIT_CODES else f"{reason} again and again before it was ready")
                return
            self._state, self._message = "failing", f"{reason}; starts again in {delay:g} s"
            self._output.event(f"{self.label} {self._message}")
            await asyncio.sleep(delay)
            self._restarts += 1

    async def _run_once(self) -> tuple[int, bool]:
        """Exit code of one life of the process, and whether it was ever ready."""
        port = free_port(_SYSTEM_HOST)
        child = await ChildProcess.start(
            command_line(self.spec.argv),
            env=self._environment(port),
            working_directory=self.spec.working_directory,
            guard=self._guard,
            on_line=self._on_line,
        )
        self._child, self._system_port = child, port
        self._output.detail(f"{self.label} is process {child.pid}, health on port {port}: {' '.join(self.spec.argv)}")
        ready = asyncio.Event()
        health = asyncio.create_task(self._follow_health(port, ready))
        try:
            code = await child.wait()
        except asyncio.CancelledError:
            self._state = "stopping"
            await child.stop(self.spec.stop_grace_seconds)
            raise
        finally:
            health.cancel()
            self._child = None
        return code, ready.is_set()

    async def _follow_health(self, port: int, ready: asyncio.Event) -> None:
        while True:
            status, _ = await http_get(_SYSTEM_HOST, port, "/health")
            if status == 200:
                self._state, self._message = "ready", ""
                ready.set()
                self._settled.set()
            elif ready.is_set():
                self._state, self._message = "failing", f"/health answers {status or 'nothing'}"
            await asyncio.sleep(_PROBE_RUNNING_SECONDS if ready.is_set() else _PROBE_STARTING_SECONDS)

    def _give_up(self, reason: str) -> None:
        self._state, self._message = "failing", f"{reason}; not started again"
        self._output.event(f"{self.label} {self._message}")
        tail = "".join(f"\n  {line}" for line in self._tail)
        self._failure = EngineError(
            f"{self.label} did not start: {reason}",
            hint=f"its last lines were:{tail}" if tail else "it wrote nothing",
        )
        self._settled.set()

    def _on_line(self, text: str) -> None:
        self._tail.append(text)
        self._output.line(self.label, text)

    def _environment(self, port: int) -> dict[str, str]:
        environment = {**self._environ, **self.spec.env}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        # For `python3` inside a shell script.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        # Last, over what a graph file says: many replicas share this machine, and we ask on loopback.
        environment |= {"DYN_SYSTEM_PORT": str(port), "DYN_SYSTEM_HOST": _SYSTEM_HOST, "PYTHONUNBUFFERED": "1"}
        return environment


def command_line(argv: Sequence[str]) -> list[str]:
    """`argv` with the interpreter that runs us: a graph says ``python3``, and means the one with these packages."""
    if argv[0] in ("python", "python3"):
        return [sys.executable, *argv[1:]]
    return list(argv)


def describe_exit(code: int) -> str:
    """What an exit code means, for people."""
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    meanings = {0: " (it should not end)", 2: " (wrong usage)", os.EX_CONFIG: " (wrong configuration)"}
    meaning = meanings.get(code, "")
    return f"ended with exit code {code}{meaning}"
