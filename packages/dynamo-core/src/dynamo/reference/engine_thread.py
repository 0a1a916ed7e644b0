"""Runs an `EngineCore` in a thread of its own and hands its results to the event loop, one call per step.

The thread is the only one that touches the core. The event loop sends it commands, which run between steps.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from dynamo.errors import DynamoError, EngineShutdown
from dynamo.reference.blas import set_blas_threads
from dynamo.reference.core import EngineCore, StepResult

__all__ = ["EngineThread"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
_Command = Callable[[EngineCore], None]


class EngineThread:
    """`on_result` and `on_death` are called on the event loop that constructs this."""

    def __init__(
        self,
        core: EngineCore,
        *,
        on_result: Callable[[StepResult], None],
        on_death: Callable[[str], None],
        blas_threads: int = 1,
        step_delay_seconds: float = 0.0,
    ) -> None:
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._on_result = on_result
        self._on_death = on_death
        self._blas_threads = blas_threads
        self._step_delay_seconds = step_delay_seconds
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._answers: list[tuple[asyncio.Future[Any], Any, DynamoError | None]] = []
        self._stopping = threading.Event()
        self._stopped = asyncio.Event()
        # daemon: an engine that nobody cleaned up must not keep the interpreter from ending
        self._thread = threading.Thread(target=self._run, name="reference-engine", daemon=True)
        self._thread.start()

    def send(self, command: _Command) -> None:
        """Run `command` in the thread before the next step."""
        self._commands.put(command)

    async def call(self, command: Callable[[EngineCore], T]) -> T:
        """Run `command` in the thread; its result, or the DynamoError that it raised.

        Raises:
            EngineShutdown: the thread has ended.
        """
        answer: asyncio.Future[T] = self._loop.create_future()

        def run(core: EngineCore) -> None:
            try:
                result = command(core)
            except DynamoError as error:
                self._answers.append((answer, None, error))
            else:
                self._answers.append((answer, result, None))

        self.send(run)
        ended = asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait((answer, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not answer.done():
            raise EngineShutdown("the engine has stopped")
        return await answer

    async def stop(self) -> None:
        """End the thread after the step that it is in. Idempotent."""
        self._stopping.set()
        self._commands.put(None)
        await self._stopped.wait()

    def _run(self) -> None:
        reason = "the engine was shut down"
        try:
            set_blas_threads(self._blas_threads)
            while not self._stopping.is_set():
                self._run_commands()
                if self._core.has_work:
                    self._core.step(time.time())
                self._post(self._on_result, self._core.take_result())
                if self._step_delay_seconds:
                    self._stopping.wait(self._step_delay_seconds)
        except Exception as error:
            logger.exception("the engine thread died")
            reason = f"the engine thread died: {type(error).__name__}: {error}"
        finally:
            self._post(self._end, reason)

    def _run_commands(self) -> None:
        """Run what is queued; without work to do, wait for the next command.

        Answers follow the results that the commands caused: who awaits one sees their effect.
        """
        try:
            command = self._commands.get(block=not self._core.has_work)
            while command is not None:
                command(self._core)
                command = self._commands.get_nowait()
        except queue.Empty:
            pass
        if self._answers:
            self._post(self._on_result, self._core.take_result())
        answers, self._answers = self._answers, []
        for answer in answers:
            self._post(_settle, *answer)

    def _end(self, reason: str) -> None:
        self._stopped.set()
        self._on_death(reason)

    def _post(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the event loop is closed: nobody is left to tell
            self._stopping.set()


def _settle(answer: asyncio.Future[Any], result: Any, error: DynamoError | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
