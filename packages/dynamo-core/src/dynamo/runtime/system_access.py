"""Who may change a process through its system port. Probes and metrics are open; what changes something asks here."""

from __future__ import annotations

import hmac

from dynamo.errors import Unauthorized
from dynamo.runtime.distributed import plane_secret
from dynamo.runtime.hosts import host_of, is_local
from dynamo.runtime.http import Exchange
from dynamo.runtime.settings import RuntimeSettings

__all__ = ["SystemAccess", "system_access"]


class SystemAccess:
    """The rule: from this machine where only it can reach the port, else with the deployment's secret.

    What counts is where the port is bound and what the client calls it, not where a connection comes from: behind a
    sidecar proxy all come from loopback.
    """

    def __init__(self, system_host: str, secret: bytes, *, insecure: bool = False) -> None:
        """`secret` is that of the planes; `insecure` opens the port to all, as it opens the planes."""
        self._local = is_local(system_host)
        self._insecure = insecure
        self._secret = secret

    def check(self, exchange: Exchange) -> None:
        """Pass, or refuse.

        Raises:
            Unauthorized: no secret or a wrong one, or a web page is behind the request.
        """
        if "origin" in exchange.headers:
            raise Unauthorized("the system port takes no requests of web pages")
        if self._insecure or (self._local and _names_this_machine(exchange)):
            return
        scheme, _, given = exchange.headers.get("authorization", "").partition(" ")
        right = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._secret)
        if not self._secret or not right:
            raise Unauthorized(
                "this needs the secret of the deployment",
                hint="send 'Authorization: Bearer SECRET' with the value of DYN_PLANE_SECRET",
            )


def _names_this_machine(exchange: Exchange) -> bool:
    """Whether the client has asked for an address of this machine, and not for a name of its own that leads here.

    A page whose host name is rebound to loopback is of the same origin then: its GET has no ``origin``.
    """
    host = exchange.headers.get("host")
    return host is None or is_local(host_of(host))


def system_access(settings: RuntimeSettings) -> SystemAccess:
    """The access to this process's system port that `settings` mean.

    Raises:
        ConfigError: the file of the secret cannot be read.
    """
    return SystemAccess(settings.system_host, plane_secret(settings), insecure=settings.insecure_planes)
