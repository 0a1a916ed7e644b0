"""Starts vLLM in a thread, within a time limit, and explains it when it does not start."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dynamo.errors import ConfigError, DynamoError, EngineError
from dynamo.vllm.args import engine_arguments
from dynamo.vllm.installation import Installation
from dynamo.vllm.laptop import CPU_ENVIRONMENT, cpu_arguments, one_process
from dynamo.vllm.output_tail import OutputTail
from dynamo.vllm.processes import EngineProcesses
from dynamo.vllm.reaper import Reaper

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["EngineHandle", "Launch", "directory_for_sockets"]

T = TypeVar("T")

_PREFIX = "dynamo-vllm-"
#: What vLLM adds to the path of a directory with its sockets: our directory's name, and a UUID.
_SOCKET_NAME_CHARACTERS = 66
#: The longest path that a socket can have, on Linux.
_SOCKET_PATH_CHARACTERS = 107
_AFTER_KILL_SECONDS = 10.0
_SHUTDOWN_SECONDS = 3.0


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
        self.llm.shutdown(timeout=_SHUTDOWN_SECONDS)
        self._remove()


class Launch:
    """One start of vLLM. `stat_loggers` are vLLM's factories; see `AsyncLLM.from_vllm_config`."""

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
        """Start the engine.

        Raises:
            ConfigError: vLLM refuses a flag, or what the flags mean together.
            EngineError: it does not start, or not within `timeout_seconds`; its processes are gone then.
        """
        task = asyncio.ensure_future(_in_daemon_thread(lambda: self._start(stat_loggers)))
        with self._output:
            try:
                done, _ = await asyncio.wait({task}, timeout=timeout_seconds)
                llm = task.result() if done else None
            except BaseException as error:
                await self._give_up(task)
                if isinstance(error, (DynamoError, asyncio.CancelledError)):
                    raise
                raise self._failure(error) from error
            if llm is None:
                output = self._output.text()
                await self._give_up(task)
                raise EngineError(
                    f"vLLM did not start within {timeout_seconds:g} s; the end of its output:\n{output}",
                    hint="raise --engine-start-timeout-seconds for a model that takes longer to load",
                )
        await asyncio.to_thread(self._processes.note_shared_memory)
        return EngineHandle(llm, self._output, self._remove)

    def _start(self, stat_loggers: Callable[[], list[Any]]) -> AsyncLLM:
        """The part that blocks: imports vLLM (seconds) and waits for the engine's processes."""
        self._prepare_environment()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.envs import disable_envs_cache, enable_envs_cache
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        disable_envs_cache()  # an earlier engine's, in this process
        arguments = {**engine_arguments(self._argv), **self._given}
        if self._installation.is_cpu:
            _add_to_environment(one_process(arguments))
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
        with _children_marked_with(self._directory):
            llm = AsyncLLM.from_vllm_config(
                config,
                usage_context=context,
                stat_loggers=stat_loggers(),
                enable_log_requests=engine_args.enable_log_requests,
                disable_log_stats=engine_args.disable_log_stats,
            )
        # From here on nothing changes them: vLLM reads some anew at every step, for a tenth of a worker's CPU.
        enable_envs_cache()
        return llm

    def _prepare_environment(self) -> None:
        """Variables that vLLM and the libraries below it read when they are imported."""
        wanted = {
            # A worker has threads by now, and a fork of it could wait for ever.
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_NO_USAGE_STATS": "1",
            # Where torch keeps what it compiled; by default with the temporary files, which go with the engine.
            "TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}",
        }
        if self._installation.is_cpu:
            wanted |= CPU_ENVIRONMENT
        _add_to_environment(wanted)
        if Path(os.environ.get("VLLM_RPC_BASE_PATH", _PREFIX)).name.startswith(_PREFIX):
            os.environ["VLLM_RPC_BASE_PATH"] = str(self._directory)  # not the user's, but an earlier engine's

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
        return EngineError(f"vLLM cannot start: {cause}", hint="the output above has the whole story")


def directory_for_sockets(temporary: Path) -> Path:
    """Where an engine's directory is made: in `temporary`, unless the names of sockets below it would be too long."""
    fits = len(str(temporary)) + _SOCKET_NAME_CHARACTERS <= _SOCKET_PATH_CHARACTERS
    return temporary if fits else Path("/", "tmp")


@contextmanager
def _children_marked_with(directory: Path) -> Iterator[None]:
    """Children get `directory` for their temporary files, by which `EngineProcesses` knows them.

    With SPT_NOENV a process that changes its title leaves the environment that others see of it alone.
    """
    marks = {"TMPDIR": str(directory), "SPT_NOENV": "1"}
    before = {name: os.environ.get(name) for name in marks}
    os.environ.update(marks)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def _add_to_environment(wanted: Mapping[str, str]) -> None:
    """What the user set stays as it is."""
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
