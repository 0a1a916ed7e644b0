"""The LoRA adapters of one worker: those of its configuration, and those that come and go while it runs.

The worker host makes one for an engine with the `lora` capability. What is loaded is published in the worker's card,
so that frontends list it and route to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path

from dynamo.errors import ConfigError, InvalidRequest, ModelNotFound, Overloaded
from dynamo.protocols.engine import LoraHost
from dynamo.protocols.lora import check_lora_name
from dynamo.worker.lora_source import check_adapter_files, directory_of
from dynamo.worker.settings import WorkerSettings

__all__ = ["LoraAdapters", "LoraNameTaken"]

logger = logging.getLogger(__name__)


class LoraNameTaken(InvalidRequest):
    """Something else has this name."""

    code = "lora_name_taken"
    http_status = 409


class LoraAdapters:
    """Loads and unloads adapters, one change of a name at a time."""

    def __init__(self, engine: LoraHost, settings: WorkerSettings, model_names: Collection[str]) -> None:
        """`model_names` are what clients call the base model: no adapter may be called so."""
        self._engine = engine
        self._settings = settings
        self._model_names = frozenset(model_names)
        self._directories: dict[str, Path] = {}
        self._changing: set[str] = set()
        self._leaving: set[str] = set()
        self._publish: Callable[[list[str]], Awaitable[None]] | None = None
        self._publishing = asyncio.Lock()

    @property
    def root(self) -> Path:
        """The directory that adapters are loaded from at run time."""
        # Path.expanduser raises RuntimeError at the ~ of an unknown user; this leaves it as it is.
        return Path(os.path.expanduser(self._settings.lora_path))  # noqa: PTH111

    def names(self) -> list[str]:
        """What is announced: loaded, and not about to be unloaded."""
        return sorted(name for name in self._engine.loras() if name not in self._leaving)

    def holds(self, name: str) -> bool:
        """Whether the engine takes requests for `name` now."""
        return name in self._engine.loras()

    async def load_configured(self) -> None:
        """Load what ``--lora-modules`` says, before the worker announces itself.

        Raises:
            ConfigError: an entry is not NAME=DIRECTORY, or the adapter cannot be loaded.
        """
        for entry in self._settings.lora_modules:
            name, separator, path = entry.partition("=")
            if not (name and separator and path):
                raise ConfigError(f"{entry!r} is not NAME=DIRECTORY", param="lora_modules", hint="see --lora-modules")
            try:
                check_lora_name(name)
                with self._changed(name):
                    await self._load(name, await asyncio.to_thread(Path(path).resolve))
            except InvalidRequest as error:
                raise ConfigError(error.message, param="lora_modules", hint=error.hint) from error

    def publish_with(self, publish: Callable[[list[str]], Awaitable[None]]) -> None:
        """From now on `publish` is told the names whenever they change; till then nobody is."""
        self._publish = publish

    async def load(self, name: str, uri: str) -> None:
        """Load an adapter and announce it. Doing so again, from the same place, changes nothing.

        Raises:
            InvalidRequest: the name, the URI or the adapter is wrong.
            LoraNameTaken: another adapter, or the model itself, has this name.
            Overloaded: `name` is being changed, or too many adapters are loaded.
            DiscoveryError: it is loaded and could not be announced; try again.
        """
        check_lora_name(name)
        root = self.root
        directory = await asyncio.to_thread(directory_of, uri, root)
        with self._changed(name):
            if not self.holds(name) or self._directories.get(name) != directory:
                await self._load(name, directory, root)
            await self._announce()

    async def unload(self, name: str) -> None:
        """Withdraw an adapter, wait for the requests that use it, and forget it.

        Raises:
            ModelNotFound: it is not loaded.
            Overloaded: it is being changed.
            DiscoveryError: it could not be withdrawn, and stays.
        """
        with self._changed(name):
            if not self.holds(name):
                raise ModelNotFound(f"no LoRA named {name[:200]!r} is loaded", param="lora_name")
            self._leaving.add(name)
            try:
                # First withdrawn, then unloaded: requests that are on their way still find it.
                await self._announce()
                await self._engine.unload_lora(name)
            finally:
                self._leaving.discard(name)
            self._directories.pop(name, None)
        logger.info("LoRA adapter %r is unloaded", name)

    async def _load(self, name: str, directory: Path, root: Path | None = None) -> None:
        settings = self._settings
        if name in self._model_names:
            raise LoraNameTaken(f"{name!r} is the name of the model itself", param="lora_name")
        if self.holds(name):
            raise LoraNameTaken(f"another LoRA named {name!r} is loaded", param="lora_name", hint="unload it first")
        if len(self._engine.loras()) + len(self._changing) > settings.lora_limit:
            raise Overloaded(f"{settings.lora_limit} adapters are loaded, the limit", hint="see --lora-limit")
        limit = settings.lora_size_limit_mib << 20
        await asyncio.to_thread(check_adapter_files, name, directory, limit_bytes=limit, root=root)
        await self._engine.load_lora(name, str(directory))
        self._directories[name] = directory
        logger.info("LoRA adapter %r is loaded", name)

    @contextlib.contextmanager
    def _changed(self, name: str) -> Iterator[None]:
        """One change of `name` at a time, so that an answer is about what its caller asked for."""
        if name in self._changing:
            raise Overloaded(f"LoRA {name!r} is being loaded or unloaded", param="lora_name", retry_after_seconds=1)
        self._changing.add(name)
        try:
            yield
        finally:
            self._changing.discard(name)

    async def _announce(self) -> None:
        async with self._publishing:  # the names are read inside: what is published last is what is true last
            if self._publish is not None:
                await self._publish(self.names())
