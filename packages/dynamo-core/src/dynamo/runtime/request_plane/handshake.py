"""The first three messages of a connection: versions, and proof on both sides of knowing the deployment's secret.

::

    server -> HELLO {version, features, nonce, auth}
    client -> HELLO {version, features, nonce, mac}
    server -> READY {mac}  or  REFUSE {error}

A ``mac`` is HMAC-SHA256(secret, side + server nonce + client nonce), where side is ``client`` or ``server``.

The secret never travels, and a recorded handshake cannot be replayed. It does not encrypt: across machines that are
not trusted, use TLS.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from typing import Any

from dynamo.errors import CannotConnect
from dynamo.runtime.request_plane.frames import PROTOCOL_VERSION

__all__ = ["ClientHandshake", "ServerHandshake"]

_NONCE_BYTES = 16


def _mac(secret: bytes, side: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    return hmac.new(secret, side + server_nonce + client_nonce, hashlib.sha256).digest()


def _check_version(hello: Mapping[str, Any]) -> None:
    version = hello.get("version")
    if not isinstance(version, (list, tuple)) or not version or version[0] != PROTOCOL_VERSION[0]:
        raise CannotConnect(
            f"the peer speaks request plane protocol {version!r}, this process {PROTOCOL_VERSION[0]}.x",
            hint="run the same major version of dynamo-core on both sides",
        )


def _nonce_of(hello: Mapping[str, Any]) -> bytes:
    nonce = hello.get("nonce")
    if not isinstance(nonce, bytes) or len(nonce) != _NONCE_BYTES:
        raise CannotConnect("the peer's handshake has no valid nonce")
    return nonce


class ServerHandshake:
    """The serving side's half."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nonce = os.urandom(_NONCE_BYTES)

    def hello(self) -> dict[str, Any]:
        """What the server sends first."""
        return {"version": PROTOCOL_VERSION, "features": [], "nonce": self._nonce, "auth": bool(self._secret)}

    def answer(self, hello: Mapping[str, Any]) -> dict[str, Any]:
        """Check the client's hello and make the READY map.

        Raises:
            CannotConnect: another major version, or the client does not know the secret.
        """
        _check_version(hello)
        if not self._secret:
            return {}
        nonce = _nonce_of(hello)
        mac = hello.get("mac")
        if not isinstance(mac, bytes) or not hmac.compare_digest(
            mac, _mac(self._secret, b"client", self._nonce, nonce)
        ):
            raise CannotConnect(
                "the peer does not know this deployment's plane secret",
                hint="set the same DYN_PLANE_SECRET or DYN_PLANE_SECRET_FILE for all processes",
            )
        return {"mac": _mac(self._secret, b"server", self._nonce, nonce)}


class ClientHandshake:
    """The asking side's half."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nonce = os.urandom(_NONCE_BYTES)
        self._server_nonce = b""

    def answer(self, hello: Mapping[str, Any]) -> dict[str, Any]:
        """Check the server's hello and make the client's.

        Raises:
            CannotConnect: another major version, or only one side has a secret.
        """
        _check_version(hello)
        self._server_nonce = _nonce_of(hello)
        if bool(hello.get("auth")) != bool(self._secret):
            missing = "this process" if hello.get("auth") else "the peer"
            raise CannotConnect(
                f"{missing} has no plane secret, the other side has one",
                hint="set the same DYN_PLANE_SECRET or DYN_PLANE_SECRET_FILE for all processes",
            )
        answer: dict[str, Any] = {"version": PROTOCOL_VERSION, "features": [], "nonce": self._nonce}
        if self._secret:
            answer["mac"] = _mac(self._secret, b"client", self._server_nonce, self._nonce)
        return answer

    def finish(self, ready: Mapping[str, Any]) -> None:
        """Check the server's proof.

        Raises:
            CannotConnect: the server does not know the secret.
        """
        if not self._secret:
            return
        mac = ready.get("mac")
        expected = _mac(self._secret, b"server", self._server_nonce, self._nonce)
        if not isinstance(mac, bytes) or not hmac.compare_digest(mac, expected):
            raise CannotConnect("the server does not know this deployment's plane secret")
