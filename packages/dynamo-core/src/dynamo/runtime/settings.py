"""Settings of every process: who it is, how it finds the others and how they talk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import ClassVar, Literal

from dynamo.config.settings import Settings, setting
from dynamo.protocols.broker import BrokerOptions
from dynamo.protocols.planes import PlaneTls

__all__ = ["RuntimeSettings", "default_state_directory"]


def default_state_directory() -> str:
    """Per user, gone after a reboot: ``$XDG_RUNTIME_DIR/dynamo``, else ``dynamo-UID`` in the temporary directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return str(Path(runtime) / "dynamo")
    return str(Path(tempfile.gettempdir()) / f"dynamo-{os.getuid()}")


class RuntimeSettings(Settings):
    """What every process of a deployment needs to find and reach the others."""

    section: ClassVar[str] = "runtime"

    namespace: str = setting("dynamo", env=("DYN_NAMESPACE", "DYNAMO_NAMESPACE"))
    """Logical deployment: processes see only their own namespace."""
    discovery_backend: str = setting("file", env=("DYN_DISCOVERY_BACKEND",))
    """Who serves what: a backend's name (file, memory, etcd) or its URL (file:///run/dynamo, etcd://host:2379)."""
    etcd_endpoints: str = setting("", env=("ETCD_ENDPOINTS",))
    """Where etcd listens, if it is the discovery backend: host:port,...; empty: port 2379 of this machine."""
    state_dir: str = setting("", env=("DYN_STATE_DIR",))
    """Directory of this deployment's files on this machine; empty: one per user."""
    request_plane: str = setting("tcp", env=("DYN_REQUEST_PLANE",))
    """How requests travel to workers."""
    request_plane_fallback: str = setting("tcp", env=("DYN_REQUEST_PLANE_FALLBACK",))
    """Request plane that takes over while the broker of the chosen one is away; empty: none."""
    event_plane: str = setting("zmq", env=("DYN_EVENT_PLANE",))
    """How KV events and load travel; empty: not at all."""
    event_plane_durable: bool = setting(False, env=("DYN_EVENT_PLANE_DURABLE",))
    """Have the broker of the event plane keep events for ten minutes, also over its own restart (NATS: JetStream)."""
    nats_servers: list[str] = setting([], env=("NATS_URL", "NATS_SERVER"))
    """URLs of the NATS cluster, for planes over NATS: nats://host:4222,...; empty: port 4222 of this machine."""
    nats_user: str = setting("", env=("NATS_USER", "NATS_AUTH_USERNAME"))
    """User name for NATS; may be part of the URL instead."""
    nats_password: str = setting("", env=("NATS_PASSWORD", "NATS_AUTH_PASSWORD"), secret=True)
    """Password for NATS."""
    nats_token: str = setting("", env=("NATS_TOKEN", "NATS_AUTH_TOKEN"), secret=True)
    """Token for NATS, in place of user and password."""
    nats_creds: str = setting("", env=("NATS_CREDS", "NATS_AUTH_CREDENTIALS_FILE"))
    """File with a NATS user's JWT and nkey seed."""
    nats_tls_ca_cert_path: str = setting("", env=("NATS_TLS_CA_CERT_PATH",))
    """PEM certificates of the authorities that sign for NATS; empty: the system's."""
    nats_tls_client_cert_path: str = setting("", env=("NATS_TLS_CLIENT_CERT_PATH",))
    """PEM certificate that this process shows to NATS."""
    nats_tls_client_key_path: str = setting("", env=("NATS_TLS_CLIENT_KEY_PATH",))
    """Its private key."""
    nats_tls_insecure: bool = setting(False, env=("NATS_TLS_INSECURE",))
    """Use TLS to NATS without checking its certificate."""
    tcp_host: str = setting("127.0.0.1", env=("DYN_TCP_RPC_HOST",), flags=("--tcp-host",))
    """Address that this process listens on for requests of its peers, and announces."""
    tcp_port: int = setting(0, env=("DYN_TCP_RPC_PORT",), flags=("--tcp-port",), ge=0, le=65535)
    """Port for requests of its peers; 0 takes a free one."""
    tcp_tls_cert_path: str = setting("", env=("DYN_TCP_TLS_CERT_PATH",))
    """Certificate (PEM) of this process for requests of its peers over TLS; empty: no TLS."""
    tcp_tls_key_path: str = setting("", env=("DYN_TCP_TLS_KEY_PATH",))
    """Its private key."""
    tcp_tls_client_ca_cert_path: str = setting("", env=("DYN_TCP_TLS_CLIENT_CA_CERT_PATH",))
    """Authority that must have signed the certificates of peers; empty: they need none."""
    tcp_tls_ca_cert_path: str = setting("", env=("DYN_TCP_TLS_CA_CERT_PATH",))
    """Authority of the workers that this process sends requests to over TLS; empty: no TLS."""
    tcp_tls_client_cert_path: str = setting("", env=("DYN_TCP_TLS_CLIENT_CERT_PATH",))
    """Certificate that this process shows to workers that ask for one."""
    tcp_tls_client_key_path: str = setting("", env=("DYN_TCP_TLS_CLIENT_KEY_PATH",))
    """Its private key."""
    tcp_tls_server_name: str = setting("", env=("DYN_TCP_TLS_SERVER_NAME",))
    """Name that workers' certificates must carry; empty: any that the authority signed."""
    plane_secret: str = setting("", env=("DYN_PLANE_SECRET",), secret=True)
    """Shared secret that the planes authenticate with."""
    plane_secret_file: str = setting("", env=("DYN_PLANE_SECRET_FILE",))
    """File that holds the shared secret."""
    insecure_planes: bool = setting(False, env=("DYN_INSECURE_PLANES",))
    """Allow planes without a secret on an address that other machines can reach."""
    system_host: str = setting("127.0.0.1", env=("DYN_SYSTEM_HOST",))
    """Address of the system port."""
    system_port: int = setting(-1, env=("DYN_SYSTEM_PORT", "DYNAMO_SYSTEM_PORT"), ge=-1, le=65535)
    """Port with /health, /live and /metrics of this process; 0 takes a free one, -1 opens none."""
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", env=("DYN_LOG", "DYN_LOG_LEVEL"))
    """Least severity that is logged."""
    log_format: Literal["text", "json"] = setting("text", env=("DYN_LOG_FORMAT",))
    """Lines for people, or one JSON object per line."""

    def plane_tls(self) -> PlaneTls:
        """The TLS files of the tcp request plane."""
        return PlaneTls(
            certificate_file=self.tcp_tls_cert_path,
            key_file=self.tcp_tls_key_path,
            client_ca_file=self.tcp_tls_client_ca_cert_path,
            ca_file=self.tcp_tls_ca_cert_path,
            client_certificate_file=self.tcp_tls_client_cert_path,
            client_key_file=self.tcp_tls_client_key_path,
            server_name=self.tcp_tls_server_name,
        )

    def state_directory(self) -> Path:
        """The state directory in force."""
        return Path(self.state_dir or default_state_directory())

    def discovery_url(self) -> str:
        """The discovery backend as a URL, for the registry of backends."""
        name = self.discovery_backend
        if "://" in name:
            return name
        if name == "file":
            return f"file://{self.state_directory() / 'discovery'}"
        if name == "etcd":
            return f"etcd://{self.etcd_endpoints}"
        return f"{'memory' if name == 'mem' else name}://"

    def broker_options(self) -> BrokerOptions:
        """How the planes over NATS reach it."""
        return BrokerOptions(
            servers=tuple(self.nats_servers),
            user=self.nats_user,
            password=self.nats_password,
            token=self.nats_token,
            credentials_file=self.nats_creds,
            tls_ca_file=self.nats_tls_ca_cert_path,
            tls_certificate_file=self.nats_tls_client_cert_path,
            tls_key_file=self.nats_tls_client_key_path,
            tls_insecure=self.nats_tls_insecure,
        )
