"""How the planes that have a broker reach it; `dynamo.runtime.settings` has the flags."""

from __future__ import annotations

import msgspec

__all__ = ["BrokerOptions"]


class BrokerOptions(msgspec.Struct, frozen=True):
    """Addresses of a broker and how this process proves itself to it; empty fields are not used."""

    servers: tuple[str, ...] = ()
    """URLs of one cluster, tried in turn, e.g. ``nats://nats:4222``; a user and password may be part of one."""
    user: str = ""
    password: str = ""
    token: str = ""
    credentials_file: str = ""
    """File with the user's JWT and its nkey seed."""
    tls_ca_file: str = ""
    """PEM certificates of the authorities that may have signed the broker's; empty: the system's."""
    tls_certificate_file: str = ""
    """PEM certificate of this process."""
    tls_key_file: str = ""
    tls_insecure: bool = False
    """Use TLS without checking the broker's certificate."""
