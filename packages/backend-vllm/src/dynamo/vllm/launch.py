"""Starts vLLM in a thread, within a time limit, and explains it when it does not start."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dynamo.errors import ConfigError, DynamoError, EngineError
from dynamo.vllm.args import engine_arguments
from dynamo.vllm.installation import Installation
from dynamo.vllm.laptop import CPU_ENVIRONMENT, cpu_arguments, one_process
from dynamo.vllm.output_tail import OutputTail
from dynamo.vllm.processes import EngineProcesses
from dynamo.vllm.reaper import Reaper
from dynamo.vllm.start_environment import StartEnvironment

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["EngineHandle", "directory_for_sockets", "launch"]

T = TypeVar("T")

_PREFIX = "dynamo-vllm-"
#: What vLLM adds to the path of a directory with its sockets: our directory's name, and a UUID.
_SOCKET_NAME_CHARACTERS = 66
#: The longest path that a socket can have, on Linux.
_SOCKET_PATH_CHARACTERS = 107
#: vLLM's own advice is for GPUs.
_MEMORY_HINT = "give more --kv-cache-memory-bytes (CPU) or --gpu-memory-utilization, or a smaller --max-model-len"
_AFTER_KILL_SECONDS = 10.0
_SHUTDOWN_SECONDS = 3.0
#: Held by the engine that starts.
_STARTING = threading.Lock()
_TURN_POLL_SECONDS = 0.05


class EngineHandle:
    """A running engine with all that has to go when it ends."""

    def __init__(self, llm: AsyncLLM, output: OutputTail, remove: Callable[[], None]) -> None:
        self.llm = llm
        self._output = output
        self._remove = remove

    def why_dead(self) -> str:
        """In one line, for the error of everybody who waits."""
        cause = self._output.cause()
        return "vLLM's engine process ended" + (f": {cause}" if cause else "")

    def output(self) -> str:
        """The end of what the engine's processes printed."""
        return self._output.text()

    def close(self) -> None:
        """End the engine's processes, gently first. Blocks for a few seconds."""
        from vllm.envs import disable_envs_cache

        self.llm.shutdown(timeout=_SHUTDOWN_SECONDS)
        disable_envs_cache()  # who uses vLLM next in this process may have set others
        self._remove()


async def launch(
    installation: Installation,
    argv: list[str],
    given: dict[str, Any],
    *,
    timeout_seconds: float,
    stat_loggers: Callable[[], list[Any]],
) -> EngineHandle:
    """Start vLLM with the flags in `argv` and the arguments `given`, when no other engine starts in this process.

    `stat_loggers` makes vLLM's factories of loggers; see `AsyncLLM.from_vllm_config`.

    Raises:
        ConfigError: vLLM refuses a flag, or what the flags mean together.
        EngineError: it does not start, or not within `timeout_seconds`; its processes are gone then.
    """
    # The environment and the standard output, which a start changes, are the whole process's.
    while not _STARTING.acquire(blocking=False):  # another thread's event loop may have it
        await asyncio.sleep(_TURN_POLL_SECONDS)
    try:
        return await _Launch(installation, argv, given).run(timeout_seconds, stat_loggers)
    finally:
        _STARTING.release()


class _Launch:
    """One start."""

    def __init__(self, installation: Installation, argv: list[str], given: dict[str, Any]) -> None:
        self._installation = installation
        self._argv = argv
        self._given = given
        self._output = OutputTail()
        self._directory = Path(
            tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=directory_for_sockets(Path(tempfile.gettempdir())))
        )
        self._processes = EngineProcesses(self._directory)
        self._reaper = Reaper(self._directory)

    async def run(self, timeout_seconds: float, stat_loggers: Callable[[], list[Any]]) -> EngineHandle:
        with self._output, StartEnvironment() as environment:
            self._prepare(environment)
            llm = await self._in_time(timeout_seconds, lambda: self._start(environment, stat_loggers))
        from vllm.envs import enable_envs_cache

        # From here on nothing changes them: vLLM reads some anew at every step, for a tenth of a worker's CPU.
        enable_envs_cache()
        self._reaper.note(self._processes.segments)
        return EngineHandle(llm, self._output, self._remove)

    async def _in_time(self, timeout_seconds: float, start: Callable[[], AsyncLLM]) -> AsyncLLM:
        task = asyncio.ensure_future(_in_daemon_thread(start))
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout_seconds)
            if done:
                return task.result()
        except BaseException as error:
            await self._give_up(task)
            if isinstance(error, (DynamoError, asyncio.CancelledError)):
                raise
            raise self._failure(error) from error
        output = self._output.text()
        await self._give_up(task)
        raise EngineError(
            f"vLLM did not start within {timeout_seconds:g} s; the end of its output:\n{output}",
            hint="raise --engine-start-timeout-seconds for a model that takes longer to load",
        )

    def _start(self, environment: StartEnvironment, stat_loggers: Callable[[], list[Any]]) -> AsyncLLM:
        """The part that blocks: imports vLLM (seconds) and waits for the engine's processes."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.envs import disable_envs_cache
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        disable_envs_cache()  # an earlier engine's, in this process
        arguments = {**engine_arguments(self._argv), **self._given}
        if self._installation.is_cpu:
            environment.add(one_process(arguments))
            arguments |= cpu_arguments(arguments, os.environ)
        arguments = self._with_kv_events(arguments)
        context = UsageContext.ENGINE_CONTEXT
        try:
            engine_args = AsyncEngineArgs(**arguments)
            config = engine_args.create_engine_config(usage_context=context)
        except (ValueError, TypeError, OSError, NotImplementedError) as error:
            raise ConfigError(
                f"vLLM refuses the flags, or the model {self._given['model']}: {_first_complaint(error)}"
            ) from error
        llm = AsyncLLM.from_vllm_config(
            config,
            usage_context=context,
            stat_loggers=None if engine_args.disable_log_stats else stat_loggers(),
            enable_log_requests=engine_args.enable_log_requests,
            disable_log_stats=engine_args.disable_log_stats,
        )
        self._processes.note_shared_memory()
        return llm

    def _prepare(self, environment: StartEnvironment) -> None:
        """Variables that vLLM and the libraries below it read when they are imported, and processes inherit."""
        environment.add(
            {
                # A worker has threads by now, and a fork of it could wait for ever.
                "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
                "VLLM_NO_USAGE_STATS": "1",
                # Where torch keeps what it compiled; by default with the temporary files, which go with the engine.
                "TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}",
                "VLLM_RPC_BASE_PATH": str(self._directory),
            }
        )
        if self._installation.is_cpu:
            environment.add(CPU_ENVIRONMENT)
        # `EngineProcesses` knows children by it. With SPT_NOENV a process that changes its title leaves the environment
        # that others see of it alone.
        environment.put({"TMPDIR": str(self._directory), "SPT_NOENV": "1"})

    def _with_kv_events(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Have the engine publish on sockets that only this user can open, unless the user chose otherwise.

        A configuration with vLLM's default port counts as no choice: a second worker would find the port taken.
        """
        from vllm.config.kv_events import KVEventsConfig

        if arguments.get("enable_prefix_caching") is False:
            return arguments
        config = arguments.get("kv_events_config") or KVEventsConfig(enable_kv_cache_events=True, publisher="zmq")
        if config.enable_kv_cache_events and config.endpoint == KVEventsConfig().endpoint:
            # vLLM tells the sockets of data-parallel ranks apart by a suffix, if "inproc" is part of the name.
            base = f"ipc://{self._directory}/inproc-kv"
            config = dataclasses.replace(config, endpoint=f"{base}-events", replay_endpoint=f"{base}-replay")
        return {**arguments, "kv_events_config": config}

    async def _give_up(self, start: asyncio.Task[AsyncLLM]) -> None:
        await asyncio.to_thread(self._remove)
        # With its processes gone the thread fails; where it hangs by itself, it is left to the end of this process.
        done, _ = await asyncio.wait({start}, timeout=_AFTER_KILL_SECONDS)
        for ended in done:
            ended.exception()  # looked at, so that asyncio does not report it
        shutil.rmtree(self._directory, ignore_errors=True)  # what the thread still made

    def _remove(self) -> None:
        self._processes.remove()
        self._reaper.close()

    def _failure(self, error: BaseException) -> EngineError:
        cause = self._output.cause() or f"{type(error).__name__}: {error}"
        hint = (
            _MEMORY_HINT if "cache blocks" in cause or "KV cache" in cause else "the output above has the whole story"
        )
        return EngineError(f"vLLM cannot start: {cause}", hint=hint)


def directory_for_sockets(temporary: Path) -> Path:
    """Where an engine's directory is made: in `temporary`, unless the names of sockets below it would be too long."""
    fits = len(str(temporary)) + _SOCKET_NAME_CHARACTERS <= _SOCKET_PATH_CHARACTERS
    return temporary if fits else Path("/", "tmp")


async def _in_daemon_thread(function: Callable[[], T]) -> T:
    """Await `function()` in a thread that does not keep the process alive when it hangs."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def finish(set_result: Callable[[Any], None], value: Any) -> None:
        if not result.done():
            set_result(value)

    def run() -> None:
        try:
            value = function()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            outcome: tuple[Callable[[Any], None], Any] = (result.set_exception, error)
        else:
            outcome = (result.set_result, value)
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, *outcome)

    threading.Thread(target=run, name="vllm-start", daemon=True).start()
    return await result


def _first_complaint(error: Exception) -> str:
    """The message; of pydantic's several lines the one that says what is wrong."""
    errors = getattr(error, "errors", None)
    if callable(errors) and (found := errors()):
        return str(found[0].get("msg", error))
    return str(error)
