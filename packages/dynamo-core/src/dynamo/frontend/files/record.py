"""What is known of a file, and how clients see it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from dynamo.errors import InvalidRequest

__all__ = ["FileNotKept", "FileRecord", "expiry_seconds", "new_file_id"]

_LEAST_EXPIRY_SECONDS, _MOST_EXPIRY_SECONDS = 3600, 30 * 24 * 3600


class FileNotKept(InvalidRequest):
    """There is no such file (any more), or it belongs to another API key."""

    code = "not_found"
    http_status = 404


class FileRecord(msgspec.Struct, frozen=True):
    """One file."""

    id: str
    owner: str
    """Name of the API key that it belongs to."""
    purpose: str
    """batch, or batch_output."""
    filename: str
    """As the client called it; never a path here."""
    bytes: int
    created_unix_seconds: float
    expires_unix_seconds: float

    def body(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created_unix_seconds),
            "expires_at": int(self.expires_unix_seconds),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


def new_file_id() -> str:
    """An id that cannot be guessed."""
    return f"file-{secrets.token_hex(16)}"


def expiry_seconds(wanted: Mapping[str, Any], param: str) -> int:
    """Seconds of ``{anchor, seconds}``, counted from when the file is made.

    Raises:
        InvalidRequest: the anchor is another one, or the time is below an hour or above 30 days.
    """
    if wanted.get("anchor") != "created_at":
        raise InvalidRequest(f"'{param}.anchor' must be created_at", param=f"{param}.anchor")
    seconds = str(wanted.get("seconds", ""))
    right = seconds.isascii() and seconds.isdigit() and len(seconds) <= len(str(_MOST_EXPIRY_SECONDS))
    if not right or not _LEAST_EXPIRY_SECONDS <= int(seconds) <= _MOST_EXPIRY_SECONDS:
        raise InvalidRequest(
            f"'{param}.seconds' must be between {_LEAST_EXPIRY_SECONDS} and {_MOST_EXPIRY_SECONDS}",
            param=f"{param}.seconds",
        )
    return int(seconds)
