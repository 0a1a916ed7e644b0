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
        # OpenSSL's errors name no file.
        _check_pem(self._certificate, "CERTIFICATE-----", "a certificate", "tls_cert_path")
        _check_pem(self._key, "PRIVATE KEY-----", "a private key", "tls_key_path")
        asked: list[bool] = []

        def no_password() -> str:
            # A prompt would stop the process: an encrypted key is refused by the empty password.
            asked.append(True)
            return ""

        try:
            # First into one that nobody uses: a pair that does not fit would leave the real one without a key.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
                context.load_cert_chain(self._certificate, self._key, password=no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise self._refusal(error, encrypted=bool(asked)) from error

    def _refusal(self, error: Exception, *, encrypted: bool) -> ConfigError:
        if encrypted:
            return ConfigError(
                f"the TLS key {self._key} is encrypted",
                param="tls_key_path",
                hint=f"write it without a password: openssl pkey -in {self._key} -out plain.key",
            )
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            return ConfigError(
                f"the TLS key {self._key} does not belong to the certificate {self._certificate}",
                param="tls_key_path",
                hint="the certificate of the server comes first in its file, those that signed it after",
            )
        return ConfigError(
            f"cannot use the TLS certificate {self._certificate} with the key {self._key}: {error}",
            param="tls_cert_path",
            hint="one of the PEM files is damaged",
        )

    def _require_clients_of(self, authorities: Path) -> None:
        try:
            self.context.load_verify_locations(authorities)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"cannot read the client authorities {authorities}: {error.strerror or error}",
                param="tls_client_ca_cert_path",
                hint="give --tls-client-ca-cert-path a PEM file of certificates",
            ) from error
        self.context.verify_mode = ssl.CERT_REQUIRED


def _check_pem(path: Path, mark: str, what: str, setting: str) -> None:
    flag = f"--{setting.replace('_', '-')}"
    try:
        found = mark in path.read_text("latin-1")
    except OSError as error:
        raise ConfigError(
            f"cannot read the TLS file {path}: {error.strerror}", param=setting, hint=f"{flag} names {what}"
        ) from error
    if not found:
        raise ConfigError(f"the TLS file {path} holds no PEM of {what}", param=setting, hint=f"{flag} names {what}")
