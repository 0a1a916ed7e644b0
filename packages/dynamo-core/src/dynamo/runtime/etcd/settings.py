"""Settings of the connection to etcd that do not fit into its address: credentials, certificates, times."""

from __future__ import annotations

from typing import ClassVar

from dynamo.config.settings import Settings, setting

__all__ = ["EtcdSettings"]


class EtcdSettings(Settings):
    """How processes authenticate to etcd, and how long a dead one stays registered. Read from the environment."""

    section: ClassVar[str] = "etcd"

    endpoints: str = setting("", env=("ETCD_ENDPOINTS",), flags=())
    """Where etcd listens, if the discovery backend's URL does not say: host:port,host:port."""
    username: str = setting("", env=("ETCD_USERNAME", "ETCD_AUTH_USERNAME"), flags=())
    """User, if etcd asks for one and the address does not name it."""
    password: str = setting("", env=("ETCD_PASSWORD", "ETCD_AUTH_PASSWORD"), secret=True)
    """The user's password."""
    ca_cert: str = setting("", env=("ETCD_CA_CERT", "ETCD_AUTH_CA"), flags=())
    """PEM file of the authority that signed etcd's certificate; empty: the system's. Turns TLS on."""
    client_cert: str = setting("", env=("ETCD_CLIENT_CERT", "ETCD_AUTH_CLIENT_CERT"), flags=())
    """PEM file of this process's certificate, if etcd asks for one. Turns TLS on."""
    client_key: str = setting("", env=("ETCD_CLIENT_KEY", "ETCD_AUTH_CLIENT_KEY"), flags=())
    """PEM file of the key of this process's certificate."""
    lease_seconds: int = setting(10, env=("ETCD_LEASE_TTL",), flags=(), ge=1, le=3600)
    """A process that has not renewed its registration for this long is gone."""
    startup_seconds: float = setting(5.0, env=("ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS",), flags=(), gt=0, le=600)
    """How long a process that starts waits for etcd to answer."""
