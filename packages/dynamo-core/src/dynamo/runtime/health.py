"""Whether this process lives and is ready, and the system port that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from dynamo.runtime.http import Exchange, HttpServer
from dynamo.runtime.telemetry import METRICS_CONTENT_TYPE, render_metrics

__all__ = ["Health", "serve_system_port"]


class Health:
    """Named conditions of this process; it is ready when there are some and all hold.

    Without any it is still starting: the system port opens before the process knows whether its settings are right.

    A condition is a function that returns None when it holds, else the reason why not.
    """

    def __init__(self) -> None:
        self._conditions: dict[str, Callable[[], str | None]] = {}

    def require(self, name: str, condition: Callable[[], str | None]) -> None:
        """Add or replace condition `name`."""
        self._conditions[name] = condition

    def failing(self) -> dict[str, str]:
        """Conditions that do not hold, with the reason."""
        reasons = {name: condition() for name, condition in self._conditions.items()}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def report(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body of ``/health``."""
        failing = self.failing() if self._conditions else {"process": "starting"}
        return (503 if failing else 200), {"status": "notready" if failing else "ready", "failing": failing}


async def serve_system_port(
    host: str, port: int, health: Health, registry: CollectorRegistry, flag: str = "--system-port"
) -> HttpServer:
    """Open the port with ``/health``, ``/live`` and ``/metrics``.

    Raises:
        CannotConnect: the port is taken.
    """
    server = HttpServer()

    def show_health(exchange: Exchange) -> None:
        exchange.respond_json(*health.report())

    def show_live(exchange: Exchange) -> None:
        exchange.respond_json(200, {"status": "live"})

    def show_metrics(exchange: Exchange) -> None:
        exchange.respond(200, render_metrics(registry), METRICS_CONTENT_TYPE)

    server.route("GET", "/health", show_health)
    server.route("GET", "/live", show_live)
    server.route("GET", "/metrics", show_metrics)
    await server.listen(host, port, flag=flag)
    return server
