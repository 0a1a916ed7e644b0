"""How a process gets at NATS: the client library, its errors, credentials, TLS, and what we refuse."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamo.errors import ConfigError, PluginError
from dynamo.protocols.broker import BrokerOptions
from dynamo.runtime.hosts import host_of, is_local

if TYPE_CHECKING:
    from nats.aio.client import Client

__all__ = ["abort", "check_secret", "client_class", "client_errors", "connect_arguments", "is_loss", "refusal"]


def check_secret(broker: BrokerOptions, secret: bytes, *, insecure: bool) -> None:
    """Refuse to serve over a broker that other machines reach, if there is no secret.

    Raises:
        ConfigError: so it is.
    """
    remote = [server for server in broker.servers if not is_local(host_of(server))]
    if remote and not secret and not insecure:
        raise ConfigError(
            f"other machines can reach NATS at {host_of(remote[0])}, and there is no plane secret",
            param="plane_secret",
            hint="set DYN_PLANE_SECRET or --plane-secret-file; --insecure-planes goes without",
        )


def client_errors() -> tuple[type[Exception], ...]:
    """What the client library raises when the server is lost, slow or refuses."""
    from nats.errors import Error

    return (OSError, Error, asyncio.TimeoutError)


def client_class() -> type[Client]:
    """The client library's class.

    Raises:
        PluginError: it is not installed.
    """
    try:
        from nats.aio.client import Client
    except ImportError as error:
        raise PluginError(
            f"NATS needs a package that is not installed: {error}", hint='pip install "dynamo-core[nats]"'
        ) from error
    return Client


def abort(client: Client) -> None:
    """Drop the connection of `client`, with what it has not sent."""
    # The library only closes after flushing, for which a hung server lets it wait for ever.
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


async def refusal(broker: BrokerOptions, server: str, timeout_seconds: float) -> str:
    """Why `server` does not let this process in; empty if it does.

    Raises:
        PluginError: the client library is not installed.
        ConfigError: a certificate file or a credentials file cannot be used.
    """
    client, reasons = client_class()(), [""]

    async def failed(error: Exception) -> None:
        reasons.append(str(error) or type(error).__name__)

    connecting = client.connect(
        [server],
        allow_reconnect=False,
        max_reconnect_attempts=1,
        error_cb=failed,
        verbose=True,  # else a reset can overtake the reason
        **connect_arguments(broker),
    )
    try:
        await asyncio.wait_for(connecting, timeout_seconds)
    except client_errors() as error:
        return reasons[-1] or str(error) or f"no answer within {timeout_seconds:g} s"
    finally:
        abort(client)
    return ""


def is_loss(error: Exception) -> bool:
    """Whether `error` only says that the connection is gone; others are about permissions or a slow consumer."""
    from nats.errors import StaleConnectionError

    return isinstance(error, (OSError, StaleConnectionError, asyncio.TimeoutError))


def connect_arguments(broker: BrokerOptions) -> dict[str, Any]:
    """Credentials and TLS as the client library's ``connect`` takes them.

    Raises:
        ConfigError: a URL, a certificate file or a credentials file cannot be used.
    """
    for server in broker.servers:
        if not host_of(server):
            raise ConfigError(f"{server!r} is not a URL of NATS", param="nats_servers", hint="nats://host:4222")
    if broker.credentials_file:
        _check_credentials(Path(broker.credentials_file))
    arguments = {
        "user": broker.user,
        "password": broker.password,
        "token": broker.token,
        "user_credentials": broker.credentials_file,
        "tls": _tls_context(broker),
    }
    return {name: value for name, value in arguments.items() if value}


def _check_credentials(path: Path) -> None:
    # The library would look for the marker for ever.
    try:
        valid = b"BEGIN NATS USER JWT" in path.read_bytes()
        problem = "" if valid else "it holds no user JWT"
    except OSError as error:
        problem = str(error.strerror or error)
    if problem:
        raise ConfigError(
            f"cannot use the NATS credentials in {path}: {problem}",
            param="nats_creds",
            hint="check --nats-creds or NATS_CREDS",
        )


def _tls_context(broker: BrokerOptions) -> ssl.SSLContext | None:
    if not (broker.tls_ca_file or broker.tls_certificate_file or broker.tls_insecure):
        return None  # the library makes one when the server asks for TLS
    try:
        context = ssl.create_default_context(cafile=broker.tls_ca_file or None)
        if broker.tls_certificate_file:
            context.load_cert_chain(broker.tls_certificate_file, broker.tls_key_file or None)
    except OSError as error:
        raise ConfigError(
            f"cannot use the certificates for NATS: {error.strerror or error}",
            param="nats_tls_ca_cert_path",
            hint="check --nats-tls-ca-cert-path, --nats-tls-client-cert-path and --nats-tls-client-key-path",
        ) from error
    if broker.tls_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
