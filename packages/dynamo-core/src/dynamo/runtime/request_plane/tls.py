"""TLS contexts of the tcp request plane, both sides, with certificates for clients where they are asked for."""

from __future__ import annotations

import ssl

from dynamo.errors import ConfigError
from dynamo.protocols.planes import PlaneTls

__all__ = ["client_context", "server_context"]


def server_context(files: PlaneTls) -> ssl.SSLContext | None:
    """How this process listens; None without a certificate.

    Raises:
        ConfigError: a file is missing or not what it should be, or clients are to be checked without TLS.
    """
    if not files.certificate_file:
        if files.client_ca_file:
            raise ConfigError(
                "clients cannot be asked for certificates without TLS",
                param="tcp_tls_cert_path",
                hint="set --tcp-tls-cert-path and --tcp-tls-key-path too",
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certificate_file, files.key_file or None)
        if files.client_ca_file:
            context.load_verify_locations(files.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        raise _unusable(error, "--tcp-tls-cert-path, --tcp-tls-key-path and --tcp-tls-client-ca-cert-path") from error
    return context


def client_context(files: PlaneTls) -> ssl.SSLContext | None:
    """How this process connects; None without an authority.

    Raises:
        ConfigError: a file is missing or not what it should be.
    """
    if not files.ca_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Peers are connected to by the address that discovery gives, which certificates seldom name.
    context.check_hostname = bool(files.server_name)
    try:
        context.load_verify_locations(files.ca_file)
        if files.client_certificate_file:
            context.load_cert_chain(files.client_certificate_file, files.client_key_file or None)
    except OSError as error:
        raise _unusable(error, "--tcp-tls-ca-cert-path and --tcp-tls-client-cert-path") from error
    return context


def _unusable(error: OSError, flags: str) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(f"the request plane's TLS files cannot be used: {reason}", hint=f"check {flags}")
