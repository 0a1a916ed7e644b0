"""Which address of this machine its peers should connect to. The planes ask when they announce themselves."""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit

__all__ = ["announced_host", "host_of", "is_local"]


def is_local(host: str) -> bool:
    """Whether only this machine can connect to a socket that is bound to `host`."""
    if host in ("unix", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(url: str) -> str:
    """The host of a broker's URL, whose scheme may be left out; "" when it has none."""
    try:
        return urlsplit(url if "://" in url else f"//{url}").hostname or ""
    except ValueError:
        return ""


def announced_host(bound_host: str) -> str:
    """`bound_host` as peers can use it: for "all addresses" it is ``POD_IP``, else that of the default route."""
    try:
        if not ipaddress.ip_address(bound_host).is_unspecified:
            return bound_host
    except ValueError:
        return bound_host
    return os.environ.get("POD_IP") or _default_route_address()


def _default_route_address() -> str:
    """The local end of a UDP socket that is connected, which sends nothing; loopback on a machine without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 of RFC 5737: never a real host
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
