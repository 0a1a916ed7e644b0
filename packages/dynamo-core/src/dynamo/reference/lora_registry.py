"""The LoRA adapters of one reference engine, and the parts of its prefix cache that belong to them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dynamo.reference.block_pool import CacheScope
from dynamo.reference.lora import LoraAdapter, load_lora_adapter
from dynamo.reference.model_config import ModelConfig
from dynamo.worker.adapter_registry import AdapterRegistry

__all__ = ["LoraRegistry"]


class LoraRegistry(AdapterRegistry[LoraAdapter]):
    """Adapters by name."""

    def __init__(self, config: ModelConfig, max_rank: int) -> None:
        super().__init__()
        self._config = config
        self._max_rank = max_rank

    async def load_from(self, name: str, directory: Path) -> None:
        """Load an adapter.

        Raises:
            InvalidRequest: it does not fit the base model, or the name is taken.
        """
        await self.load(
            name,
            lambda: asyncio.to_thread(load_lora_adapter, name, directory, self._config, max_rank=self._max_rank),
        )

    def scope(self, name: str | None, cache_salt: str | None) -> CacheScope:
        """The part of the prefix cache that requests for adapter `name` share.

        Raises:
            InvalidRequest: it is not loaded.
        """
        with self.use(name) as adapter:
            fingerprint = adapter.fingerprint if adapter else None
        return CacheScope(lora=name, lora_fingerprint=fingerprint, cache_salt=cache_salt)
