"""The LoRA adapters of one engine and who is using them; lives on the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dynamo.errors import InvalidRequest
from dynamo.reference.block_pool import CacheScope
from dynamo.reference.lora import LoraAdapter, load_lora_adapter
from dynamo.reference.model_config import ModelConfig

__all__ = ["LoraRegistry"]


class LoraRegistry:
    """Adapters by name."""

    def __init__(self, config: ModelConfig, max_rank: int) -> None:
        self._config = config
        self._max_rank = max_rank
        self._adapters: dict[str, LoraAdapter] = {}
        self._reserved: set[str] = set()
        """Names that are being loaded or unloaded."""
        self._users: Counter[str] = Counter()
        self._unused: dict[str, asyncio.Event] = {}
        """Set when the last user of an adapter that is being unloaded ends."""

    def names(self) -> Sequence[str]:
        """Adapters that requests may name."""
        return [name for name in self._adapters if name not in self._reserved]

    async def load(self, name: str, directory: Path) -> None:
        """Load an adapter.

        Raises:
            InvalidRequest: it does not fit the base model, or the name is taken.
        """
        if name in self._adapters or name in self._reserved:
            raise InvalidRequest(f"a LoRA named {name!r} is loaded already", param="lora", hint="unload it first")
        self._reserved.add(name)
        try:
            self._adapters[name] = await asyncio.to_thread(
                load_lora_adapter, name, directory, self._config, max_rank=self._max_rank
            )
        finally:
            self._reserved.discard(name)

    async def unload(self, name: str) -> None:
        """Refuse new requests for an adapter, wait for those that use it, and forget it.

        Raises:
            InvalidRequest: it is not loaded.
        """
        if name not in self.names():
            raise _unknown(name)
        self._reserved.add(name)
        try:
            if self._users[name]:
                self._unused[name] = asyncio.Event()
                await self._unused[name].wait()
            del self._adapters[name]
        finally:
            self._unused.pop(name, None)
            self._reserved.discard(name)

    @contextmanager
    def use(self, name: str | None) -> Iterator[LoraAdapter | None]:
        """Hold an adapter for the life of a request; None is the base model.

        Raises:
            InvalidRequest: it is not loaded.
        """
        if name is None:
            yield None
            return
        if name not in self.names():
            raise _unknown(name)
        self._users[name] += 1
        try:
            yield self._adapters[name]
        finally:
            self._users[name] -= 1
            if not self._users[name] and name in self._unused:
                self._unused[name].set()

    def scope(self, name: str | None, cache_salt: str | None) -> CacheScope:
        """The part of the prefix cache that requests for adapter `name` share.

        Raises:
            InvalidRequest: it is not loaded.
        """
        with self.use(name) as adapter:
            fingerprint = adapter.fingerprint if adapter else None
        return CacheScope(lora=name, lora_fingerprint=fingerprint, cache_salt=cache_salt)


def _unknown(name: str) -> InvalidRequest:
    return InvalidRequest(f"no LoRA named {name!r} is loaded", param="lora")
