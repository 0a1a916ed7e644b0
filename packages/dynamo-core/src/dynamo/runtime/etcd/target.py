"""Which etcd to talk to, and as whom: the URL and the settings, read once and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from dynamo.errors import ConfigError
from dynamo.runtime.etcd.settings import EtcdSettings

__all__ = ["Certificates", "Endpoint", "EtcdTarget"]

_DEFAULT = "localhost:2379"
_DEFAULT_PORT = 2379
_HINT = "write it as etcd://host:port,host:port, each host with http:// or https:// in front if need be"


class Endpoint(NamedTuple):
    """One member of the cluster."""

    address: str
    """``host:port``."""
    tls: bool


class Certificates(NamedTuple):
    """PEM data for TLS; None: the system's authorities, no certificate of our own."""

    authority: bytes | None
    certificate: bytes | None
    key: bytes | None


@dataclass(frozen=True)
class EtcdTarget:
    """The members of one cluster and the user to be there."""

    endpoints: tuple[Endpoint, ...]
    username: str = ""
    password: str = field(default="", repr=False)
    certificates: Certificates = field(default=Certificates(None, None, None), repr=False)

    def __str__(self) -> str:
        return ", ".join(endpoint.address for endpoint in self.endpoints)

    @classmethod
    def parse(cls, url: str, settings: EtcdSettings) -> EtcdTarget:
        """Read ``etcd://host:port,https://user:password@host``; nothing after the scheme means the settings' endpoints.

        A user in the URL counts for all endpoints and before that of the settings.

        Raises:
            ConfigError: an endpoint, the credentials or a certificate file is wrong.
        """
        rest = url.removeprefix("etcd://") or settings.endpoints
        texts = [text.strip() for text in rest.split(",") if text.strip()] or [_DEFAULT]
        tls = bool(settings.ca_cert or settings.client_cert)
        parts = [_split(text, tls) for text in texts]
        users = {(unquote(part.username), unquote(part.password or "")) for part in parts if part.username}
        if len(users) > 1:
            raise ConfigError("the etcd endpoints name different users", hint="give one user for the whole cluster")
        username, password = users.pop() if users else (settings.username, settings.password)
        if bool(username) != bool(password):
            raise ConfigError(
                f"etcd: {'a user without a password' if username else 'a password without a user'}",
                hint="set both ETCD_USERNAME and ETCD_PASSWORD, or neither",
            )
        endpoints = tuple(dict.fromkeys(_endpoint(part) for part in parts))
        return cls(endpoints, username, password, _certificates(settings))


def _split(text: str, tls: bool) -> SplitResult:
    scheme, found, rest = text.rpartition("://")
    if not found:
        scheme, rest = ("https" if tls else "http"), text
    shown = rest.rpartition("@")[2]  # what may be a password stays out of messages
    try:
        part = urlsplit(f"{scheme}://{rest}")
        valid = part.port != 0 and bool(part.hostname)
    except ValueError:
        valid = False
    if not valid or part.path.strip("/") or part.query or part.fragment:
        raise ConfigError(f"{shown!r} is not an etcd endpoint", param="etcd_endpoints", hint=_HINT)
    if scheme not in ("http", "https"):
        raise ConfigError(f"etcd endpoint {shown!r} has scheme {scheme!r}", param="etcd_endpoints", hint=_HINT)
    return part


def _endpoint(part: SplitResult) -> Endpoint:
    host = part.hostname or ""
    bracketed = f"[{host}]" if ":" in host else host
    return Endpoint(f"{bracketed}:{part.port or _DEFAULT_PORT}", part.scheme == "https")


def _certificates(settings: EtcdSettings) -> Certificates:
    if bool(settings.client_cert) != bool(settings.client_key):
        raise ConfigError(
            "etcd: a client certificate needs its key, and the key its certificate",
            hint="set both ETCD_CLIENT_CERT and ETCD_CLIENT_KEY",
        )
    return Certificates(
        _read(settings.ca_cert, "ETCD_CA_CERT"),
        _read(settings.client_cert, "ETCD_CLIENT_CERT"),
        _read(settings.client_key, "ETCD_CLIENT_KEY"),
    )


def _read(path: str, variable: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=f"check {variable}") from error
