"""What outlives a request, shared by all frontend processes of a machine: responses that clients go on from.

Everything belongs to the API key that made it; without keys the owner is "". Used by `dynamo.frontend.responses`.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["FrontendStore", "NoStore"]


class FrontendStore(Protocol):
    """Documents by id and owner; the bodies are their users' business.

    Every method raises:
        Overloaded: too many calls wait already.
        ResponseTimeout: the store did not answer in time.
        EngineError: the store failed.
    """

    async def put_response(self, response_id: str, owner: str, body: bytes) -> None:
        """Keep a response; what was not used for longest may go for it."""
        ...

    async def get_response(self, response_id: str, owner: str) -> bytes | None:
        """A response of this owner; None if there is none (any more). Counts as a use."""
        ...

    async def delete_response(self, response_id: str, owner: str) -> bool:
        """Forget a response; False if there was none."""
        ...

    async def close(self) -> None:
        """Let what was begun end, and free files."""
        ...


class NoStore:
    """Keeps nothing: the store of a frontend that is told to remember no responses."""

    async def put_response(self, response_id: str, owner: str, body: bytes) -> None:
        """See `FrontendStore`."""

    async def get_response(self, response_id: str, owner: str) -> bytes | None:  # noqa: ARG002
        """See `FrontendStore`."""
        return None

    async def delete_response(self, response_id: str, owner: str) -> bool:  # noqa: ARG002
        """See `FrontendStore`."""
        return False

    async def close(self) -> None:
        """See `FrontendStore`."""
