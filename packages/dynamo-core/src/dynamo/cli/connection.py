"""How client commands reach a server: trust in its certificate, and errors that say what to do.

Used by ``dynamo chat`` (`dynamo.cli.openai_client`) and ``dynamo explain``.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx

from dynamo.errors import CannotConnect, ConfigError, Disconnected, DynamoError, ResponseTimeout

__all__ = ["connection_errors", "http_client"]

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
#: X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_OTHER_NAME = {62, 64}


def http_client(url: str, *, api_key: str | None, cacert: str | None, timeout: httpx.Timeout) -> httpx.Client:
    """A client for the server at `url`, which may have a certificate of the authorities in the file `cacert`.

    Raises:
        ConfigError: `cacert`, or the file that SSL_CERT_FILE names, holds no certificates.
    """
    parts = urlsplit(url)
    return httpx.Client(
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=timeout,
        verify=_trust(cacert) if parts.scheme == "https" else True,
        # A proxy from the environment cannot know what runs on this machine.
        trust_env=parts.hostname not in _LOOPBACK,
    )


@contextmanager
def connection_errors(url: str) -> Iterator[None]:
    """Around requests to `url`: what goes wrong with the connection becomes one of our errors.

    Raises:
        CannotConnect, Disconnected, ResponseTimeout: nobody answers, or not to the end.
    """
    try:
        yield
    except httpx.ConnectError as error:
        raise _cannot_connect(url, error) from error
    except httpx.TimeoutException as error:
        raise ResponseTimeout(f"{url} did not answer in time") from error
    except httpx.HTTPError as error:
        plain = urlsplit(url).scheme == "http" and isinstance(error, httpx.RemoteProtocolError)
        hint = "if the server speaks TLS, its URL begins with https://" if plain else None
        raise Disconnected(f"the connection to {url} broke: {error}", hint=hint) from error


def _trust(cacert: str | None) -> ssl.SSLContext:
    file = cacert or os.environ.get("SSL_CERT_FILE", "")
    try:
        context = httpx.create_ssl_context()
        if cacert:
            context.load_verify_locations(cacert)
    except OSError as error:  # ssl.SSLError too
        raise ConfigError(
            f"cannot read the certificates in {file}: {error.strerror or error}",
            param="--cacert" if cacert else "SSL_CERT_FILE",
            hint="give a PEM file with the certificate of the authority, or of the server if it has signed its own",
        ) from error
    return context


def _cannot_connect(url: str, error: httpx.ConnectError) -> DynamoError:
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, ssl.SSLError):
        reason = reason.__cause__ or reason.__context__
    if isinstance(reason, ssl.SSLCertVerificationError):
        hint = (
            "ask by a name that is in its certificate"
            if reason.verify_code in _OTHER_NAME
            else "trust the authority that signed it with --cacert FILE or the variable SSL_CERT_FILE"
        )
        return CannotConnect(f"the certificate of {url} is not trusted: {reason.verify_message}", hint=hint)
    if reason is not None:
        return CannotConnect(
            f"no TLS connection to {url}: {error}", hint="if the server speaks no TLS, its URL begins with http://"
        )
    return CannotConnect(
        f"no server answers at {url}: {error}", hint="start one with `dynamo serve`, or name another with --url"
    )
