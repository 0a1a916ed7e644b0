"""Checks of etcd and NATS, where they are configured: does somebody answer at the address, and let us in?"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from dynamo.cli.checks.finding import Finding, fail, ok
from dynamo.config import load_settings
from dynamo.errors import DynamoError
from dynamo.runtime.nats_access import refusal
from dynamo.runtime.settings import RuntimeSettings

__all__ = ["check_etcd", "check_nats"]

_TIMEOUT_SECONDS = 3.0


def check_etcd() -> Iterator[Finding]:
    """Each address of ETCD_ENDPOINTS accepts connections."""
    addresses = os.environ.get("ETCD_ENDPOINTS", "")
    if not addresses.strip():
        yield ok("etcd", "not configured (one machine needs none)")
        return
    for address in filter(None, (part.strip() for part in addresses.split(","))):
        try:
            with _connect(address, 2379):
                yield ok("etcd", f"{address} accepts connections")
        except (OSError, ValueError) as error:
            yield fail("etcd", f"{address}: {_reason(error)}", "start etcd, or correct or unset ETCD_ENDPOINTS")


def check_nats() -> Iterator[Finding]:
    """The server of NATS_URL or NATS_SERVER greets as NATS does, and takes our credentials."""
    variable = next((name for name in ("NATS_URL", "NATS_SERVER") if os.environ.get(name)), None)
    if variable is None:
        yield ok("nats", "not configured (one machine needs none)")
        return
    fix = f"start NATS, or correct or unset {variable}"
    for address in filter(None, (part.strip() for part in os.environ[variable].split(","))):
        shown = address.rpartition("@")[2]
        try:
            with _connect(address, 4222) as connection:
                greeting = connection.recv(64)
        except (OSError, ValueError) as error:
            yield fail("nats", f"{shown}: {_reason(error)}", fix)
            continue
        if greeting.startswith(b"INFO "):
            yield _nats_login(address, shown)
        else:
            yield fail("nats", f"{shown} accepts connections, but is not NATS", fix)


def _nats_login(address: str, shown: str) -> Finding:
    try:
        broker = load_settings(RuntimeSettings, environ=os.environ).broker_options()
        refused = asyncio.run(refusal(broker, address, _TIMEOUT_SECONDS))
    except DynamoError as error:
        return fail("nats", f"{shown} answers, but cannot be used: {error.message}", error.hint or "")
    if refused:
        fix = "check NATS_USER and NATS_PASSWORD, NATS_TOKEN or NATS_CREDS, and the certificates"
        return fail("nats", f"{shown} refuses this process: {refused}", fix)
    return ok("nats", f"{shown} answers")


def _connect(address: str, default_port: int) -> socket.socket:
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    if not parts.hostname:
        raise ValueError("not an address")
    connection = socket.create_connection((parts.hostname, parts.port or default_port), timeout=_TIMEOUT_SECONDS)
    connection.settimeout(_TIMEOUT_SECONDS)
    return connection


def _reason(error: OSError | ValueError) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
