"""Clients' own key-value pairs, which responses and batches give back."""

from __future__ import annotations

from collections.abc import Mapping

from dynamo.errors import InvalidRequest

__all__ = ["check_metadata"]

_PAIRS, _KEY_CHARACTERS, _VALUE_CHARACTERS = 16, 64, 512


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Check OpenAI's bounds.

    Raises:
        InvalidRequest: there are too many pairs, or one is too long.
    """
    if len(metadata) > _PAIRS:
        raise InvalidRequest(f"'metadata' may have {_PAIRS} pairs", param="metadata")
    for key, value in metadata.items():
        if len(key) > _KEY_CHARACTERS or len(value) > _VALUE_CHARACTERS:
            raise InvalidRequest(
                f"'metadata' keys may have {_KEY_CHARACTERS} characters, values {_VALUE_CHARACTERS}", param="metadata"
            )
