"""The life of one request, seen by whoever serves it. `dynamo.runtime.context` implements it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

__all__ = ["RequestContext"]


class RequestContext(Protocol):
    """One request: its name, its deadline and its only way to be cancelled."""

    @property
    def request_id(self) -> str:
        """Unique among the requests of the deployment."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        ...

    @property
    def deadline_unix_seconds(self) -> float | None:
        """When the answer is of no use any more."""
        ...

    @property
    def trace(self) -> Mapping[str, str]:
        """W3C trace context headers."""
        ...

    def cancel(self) -> None:
        """Stop the request, wherever it is. Idempotent, thread-unsafe (event loop only)."""
        ...

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the request is cancelled; at once if it already is."""
        ...

    async def wait_cancelled(self) -> None:
        """Return when the request is cancelled."""
        ...
