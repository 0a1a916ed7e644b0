"""TLS of the HTTP server: certificate, key, and certificates that clients must show."""

from __future__ import annotations

import ssl
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.frontend.security.watching import FileWatch
from dynamo.frontend.settings import FrontendSettings

__all__ = ["TlsFiles"]


class TlsFiles:
    """A server's TLS context, and the watch that loads a renewed certificate into it for new connections.

    Raises:
        ConfigError: a file cannot be read, or key and certificate do not belong together.
    """

    def __init__(self, certificate: Path, key: Path, client_authorities: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        # On the event loop, where handshakes begin: a context must not change under one.
        self.watch = FileWatch([certificate, key], self._load, "TLS certificate", threaded=False)
        self._load()
        if client_authorities is not None:
            self._require_clients_of(client_authorities)

    @classmethod
    def from_settings(cls, settings: FrontendSettings) -> TlsFiles | None:
        """What `settings` ask for; None: plain HTTP.

        Raises:
            ConfigError: as for the class, or a flag is missing.
        """
        certificate, key = settings.tls_cert_path, settings.tls_key_path
        authorities = settings.tls_client_ca_cert_path
        if not (certificate or key or authorities):
            return None
        if not (certificate and key):
            missing = "--tls-key-path" if certificate else "--tls-cert-path"
            raise ConfigError(f"TLS needs a certificate and its key; {missing} is missing", param=missing)
        return cls(Path(certificate), Path(key), Path(authorities) if authorities else None)

    def _load(self) -> None:
        try:
            # First into one that nobody uses: a pair that does not fit would leave the real one without a key.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
                # A password prompt would stop the process: an encrypted key is refused by the empty password.
                context.load_cert_chain(self._certificate, self._key, password=lambda: "")
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"cannot use the certificate {self._certificate} with the key {self._key}: {error}",
                param="tls_cert_path",
                hint="both must be PEM files that belong together, the key without a password",
            ) from error

    def _require_clients_of(self, authorities: Path) -> None:
        try:
            self.context.load_verify_locations(authorities)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"cannot read the client authorities {authorities}: {error}", param="tls_client_ca_cert_path"
            ) from error
        self.context.verify_mode = ssl.CERT_REQUIRED
