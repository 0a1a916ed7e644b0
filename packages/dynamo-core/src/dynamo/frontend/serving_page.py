"""``GET /serving`` on the system port: what this frontend serves, and how a client must ask it.

For whoever started it: ``dynamo serve`` knows by it that a model can be used, also where clients need TLS or an API
key. Where other machines can reach the system port, the page needs the deployment's secret.
"""

from __future__ import annotations

from dynamo.frontend.models import ServedModels
from dynamo.frontend.settings import FrontendSettings
from dynamo.runtime.http import Exchange, HttpServer
from dynamo.runtime.system_access import SystemAccess

__all__ = ["ServingPage"]


class ServingPage:
    """The route handler. `asks_for_key` and the TLS settings say what a client needs."""

    def __init__(
        self, models: ServedModels, settings: FrontendSettings, access: SystemAccess, *, asks_for_key: bool
    ) -> None:
        self._models = models
        self._access = access
        self._needs = {
            "tls": bool(settings.tls_cert_path),
            "client_certificate": bool(settings.tls_client_ca_cert_path),
            "api_key": asks_for_key,
        }

    def install(self, server: HttpServer) -> None:
        """Serve the page on `server`, the system port."""
        server.route("GET", "/serving", self.show)

    def show(self, exchange: Exchange) -> None:
        """``{"tls", "client_certificate", "api_key", "models"}``: three flags and the names that are ready."""
        self._access.check(exchange)
        exchange.respond_json(200, {**self._needs, "models": [*self._models.names()]})
