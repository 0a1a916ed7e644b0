"""``GET /v1/models``, ``/v1/models/{model}`` and ``/v1/models/{model}/ready``."""

from __future__ import annotations

from typing import Any

from dynamo.frontend.models import ServedModel, ServedModels
from dynamo.protocols.discovery import InstanceRecord
from dynamo.runtime.http import Exchange

__all__ = ["ModelPages"]


class ModelPages:
    """The route handlers. They show what the API key may use."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def every(self, exchange: Exchange) -> None:
        """All models, aliases and LoRA adapters that are ready."""
        bodies = [_body(name, model) for name, model in self._models.names().items()]
        exchange.respond_json(200, {"object": "list", "data": bodies})

    def one(self, exchange: Exchange) -> None:
        """One model."""
        exchange.respond_json(200, _body(exchange.params, self._models.get(exchange.params)))

    def ready(self, exchange: Exchange) -> None:
        """200 while the model has workers, 503 with Retry-After while it is known and has none, else 404."""
        model = self._models.get(exchange.params)
        workers = sum(_holds(record, model.lora) for record in model.candidates.records())
        exchange.respond_json(200, {"id": exchange.params, "ready": True, "workers": workers})


def _holds(record: InstanceRecord, lora: str | None) -> bool:
    return lora is None or (record.card is not None and lora in record.card.loras)


def _body(name: str, model: ServedModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created_unix_seconds,
        "owned_by": model.card.backend or "dynamo",
        "root": model.base_name,
        "parent": model.base_name if model.lora is not None else None,
        "max_model_len": model.context_length_tokens,
    }
