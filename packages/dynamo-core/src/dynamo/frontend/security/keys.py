"""API keys: read from settings and a file, held as hashes only, and found by the credential of a request."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from dynamo.errors import ConfigError, Unauthorized
from dynamo.frontend.text_rules import KEY_LIMIT_CHARACTERS, ApiKeyText, KeyName, Sha256Hex, in_words

__all__ = ["ApiKey", "KeyTable", "credential", "key_digest", "named_by_hash", "read_key_file"]

_HINT = "each entry is {name, key or sha256, models, requests_per_minute, tokens_per_minute, admin}"
_PREFIX_BYTES = 8


class ApiKey(msgspec.Struct, frozen=True):
    """One key: whom it belongs to and what it may do. The key itself is not kept."""

    name: str
    digest: bytes
    """SHA-256 of the key."""
    models: frozenset[str] | None = None
    """Names or aliases; None: all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    admin: bool = False
    """May see and change what concerns all keys: routing decisions, thresholds."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """One entry of a key file."""

    name: KeyName
    key: ApiKeyText | None = None
    sha256: Sha256Hex | None = None
    models: list[str] | None = None
    requests_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tokens_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None
    admin: bool = False


class KeyTable:
    """Keys by hash. Immutable; a changed file makes a new one."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        """Raises ConfigError when two entries share a name or a key."""
        self._by_prefix: dict[bytes, list[ApiKey]] = {}
        self.keys = tuple(keys)
        names: set[str] = set()
        for key in self.keys:
            if key.name in names:
                raise ConfigError(f"two API keys are named {key.name!r}", hint="names own files, batches and counters")
            names.add(key.name)
            twin = self.find_digest(key.digest)
            if twin is not None:
                raise ConfigError(f"API keys {twin.name!r} and {key.name!r} are the same key")
            self._by_prefix.setdefault(key.digest[:_PREFIX_BYTES], []).append(key)

    def find(self, given: str) -> ApiKey:
        """The key that a client sent.

        Raises:
            Unauthorized: there is none, or it is not one of ours.
        """
        if not given:
            raise Unauthorized(
                "this server needs an API key",
                reason="missing_api_key",
                hint="send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            )
        found = self.find_digest(key_digest(given)) if len(given) <= KEY_LIMIT_CHARACTERS else None
        if found is None:
            raise Unauthorized("the API key is not valid", reason="invalid_api_key")
        return found

    def find_digest(self, digest: bytes) -> ApiKey | None:
        """By hash. Look-up time tells a client about the hash of its guess at most, never about a key."""
        for key in self._by_prefix.get(digest[:_PREFIX_BYTES], ()):
            if hmac.compare_digest(key.digest, digest):
                return key
        return None


def credential(headers: Mapping[str, str]) -> str:
    """The key in ``Authorization: Bearer`` or ``x-api-key`` (Anthropic's clients); empty when there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return headers.get("x-api-key", "").strip()


def key_digest(key: str) -> bytes:
    """SHA-256; keys are long and random, so there is nothing for a slow hash to protect."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def named_by_hash(keys: Iterable[str]) -> list[ApiKey]:
    """Keys without a file: unlimited, each named by the beginning of its hash, the same after every restart."""
    found = {key_digest(key) for key in keys if key}
    return [ApiKey(f"key-{digest.hex()[:8]}", digest) for digest in sorted(found)]


def read_key_file(path: Path) -> list[ApiKey]:
    """Keys of a YAML or JSON file: a list of ``{name, key | sha256, models, requests_per_minute, ...}``.

    Raises:
        ConfigError: it cannot be read, or an entry is wrong; neither shows a key.
    """
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the API keys in {path}: {error.strerror}", param="api_key_file") from error
    except (yaml.YAMLError, UnicodeDecodeError):
        # Not chained: the parser's message quotes the line, key and all.
        raise ConfigError(f"{path} is neither YAML nor JSON", param="api_key_file", hint=_HINT) from None
    if data is not None and not isinstance(data, list):
        raise ConfigError(f"{path} must be a list of API keys", param="api_key_file", hint=_HINT)
    return [_api_key(path, index, entry) for index, entry in enumerate(data or [])]


def _api_key(path: Path, index: int, data: Any) -> ApiKey:
    try:
        entry = msgspec.convert(data, _Entry)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}, entry {index}: {in_words(error)}", param="api_key_file", hint=_HINT) from error
    if (entry.key is None) == (entry.sha256 is None):
        raise ConfigError(f"{path}, entry {index}: give either key or sha256", param="api_key_file", hint=_HINT)
    return ApiKey(
        name=entry.name,
        digest=bytes.fromhex(entry.sha256) if entry.sha256 else key_digest(entry.key or ""),
        models=None if entry.models is None else frozenset(entry.models),
        requests_per_minute=entry.requests_per_minute,
        tokens_per_minute=entry.tokens_per_minute,
        admin=entry.admin,
    )
