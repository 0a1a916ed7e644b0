"""The LoRA adapters of one engine and who is using them. Engines keep one; it lives on the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from dynamo.errors import InvalidRequest

__all__ = ["AdapterRegistry"]

A = TypeVar("A")


class AdapterRegistry(Generic[A]):
    """Adapters by name; an `A` is what the engine knows one by."""

    def __init__(self) -> None:
        self._adapters: dict[str, A] = {}
        self._reserved: set[str] = set()
        """Names that are being loaded or unloaded."""
        self._users: Counter[str] = Counter()
        self._unused: dict[str, asyncio.Event] = {}
        """Set when the last user of an adapter that is being unloaded ends."""

    def names(self) -> Sequence[str]:
        """Adapters that requests may name."""
        return [name for name in self._adapters if name not in self._reserved]

    def taken(self) -> int:
        """Adapters that are loaded, or being loaded or unloaded."""
        return len(self._adapters.keys() | self._reserved)

    async def load(self, name: str, make: Callable[[], Awaitable[A]]) -> None:
        """Enter what `make` gives as `name`.

        Raises:
            InvalidRequest: the name is taken.
        """
        if name in self._adapters or name in self._reserved:
            raise InvalidRequest(f"a LoRA named {name!r} is loaded already", param="lora", hint="unload it first")
        self._reserved.add(name)
        try:
            self._adapters[name] = await make()
        finally:
            self._reserved.discard(name)

    async def unload(self, name: str, forget: Callable[[A], Awaitable[None]]) -> None:
        """Refuse new requests for an adapter, wait for those that use it, and `forget` it.

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
            await forget(self._adapters[name])
            del self._adapters[name]
        finally:
            self._unused.pop(name, None)
            self._reserved.discard(name)

    @contextmanager
    def use(self, name: str | None) -> Iterator[A | None]:
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
            if not self._users[name]:
                del self._users[name]
                if name in self._unused:
                    self._unused[name].set()


def _unknown(name: str) -> InvalidRequest:
    return InvalidRequest(f"no LoRA named {name!r} is loaded", param="lora")
