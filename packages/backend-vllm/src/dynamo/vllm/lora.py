"""The LoRA adapters of one vLLM engine; `VllmEngine` hands its requests' adapters to vLLM through this.

vLLM loads an adapter that a request names when it first runs it, and its engine core dies when that fails. So requests
name only adapters that were loaded, checked and kept: never more than vLLM keeps in memory (``--max-cpu-loras``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo.errors import EngineError, EngineShutdown, InvalidRequest
from dynamo.protocols.lora import lora_id_of
from dynamo.vllm.lora_check import check_adapter
from dynamo.worker.adapter_registry import AdapterRegistry

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["LoraRegistry"]


class LoraRegistry:
    """Adapters by name, as vLLM's LoRARequest with a number that is the same in every process."""

    def __init__(self, engine_client: AsyncLLM) -> None:
        self._llm = engine_client
        config = engine_client.vllm_config.lora_config
        self._capacity = 0 if config is None else int(config.max_cpu_loras or config.max_loras)
        self._adapters: AdapterRegistry[LoRARequest] = AdapterRegistry()
        self._loads: Counter[str] = Counter()

    @property
    def enabled(self) -> bool:
        """Whether vLLM was started with ``--enable-lora``."""
        return self._capacity > 0

    def names(self) -> list[str]:
        """Adapters that requests may name."""
        return list(self._adapters.names())

    def use(self, name: str | None) -> AbstractContextManager[LoRARequest | None]:
        """Hold an adapter for the life of a request; None is the base model.

        Raises:
            InvalidRequest: on entry, it is not loaded.
        """
        return self._adapters.use(name)

    async def load(self, name: str, directory: Path) -> None:
        """Load an adapter in every rank of the engine.

        Raises:
            InvalidRequest: vLLM does not take it, the name is taken, there is no room, or vLLM runs without LoRA.
            EngineShutdown: the engine is gone.
        """
        if not self.enabled:
            raise InvalidRequest(
                "this vLLM engine takes no LoRA adapters", param="lora", hint="start it with --enable-lora"
            )
        if name not in self._adapters.names() and self._adapters.taken() >= self._capacity:
            raise InvalidRequest(
                f"this vLLM engine keeps {self._capacity} LoRA adapters, and has as many",
                param="lora",
                hint="unload one, or see --max-loras and --max-cpu-loras",
            )
        await self._adapters.load(name, lambda: self._add(name, directory))

    async def unload(self, name: str) -> None:
        """Refuse new requests for an adapter, wait for those that use it, and drop it from vLLM.

        Raises:
            InvalidRequest: it is not loaded.
            EngineShutdown: the engine is gone.
        """
        await self._adapters.unload(name, self._remove)

    async def _add(self, name: str, directory: Path) -> LoRARequest:
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        number = lora_id_of(name)
        if any(lora_id_of(other) == number for other in self._adapters.names()):
            raise InvalidRequest(f"LoRA {name!r} has the same number as another one", param="lora", hint="rename it")
        # vLLM tells KV blocks apart by name and path. What comes back under both may have been trained further.
        path = os.path.join(directory, *["."] * self._loads[name])  # noqa: PTH118 - a Path would drop the dots
        request = LoRARequest(name, number, path)
        model = Path(self._llm.vllm_config.model_config.model)
        await asyncio.to_thread(check_adapter, name, directory, model)
        try:
            added = await self._llm.add_lora(request)
        except EngineDeadError as error:
            raise EngineShutdown("the vLLM engine is gone") from error
        except Exception as error:  # whatever its engine core met in the files reaches us as a plain Exception
            with contextlib.suppress(EngineError):
                await self._remove(request)  # it may have got half way
            raise InvalidRequest(f"LoRA {name!r} cannot be loaded: {_reason(error)}", param="lora") from error
        if not added:
            raise InvalidRequest(f"vLLM does not take LoRA {name!r}", param="lora")
        self._loads[name] += 1
        return request

    async def _remove(self, request: LoRARequest) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._llm.remove_lora(request.lora_int_id)
        except EngineDeadError as error:
            raise EngineShutdown("the vLLM engine is gone") from error
        except Exception as error:
            raise EngineError(f"LoRA {request.lora_name!r} cannot be unloaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = (
        str(error).removeprefix("Call to add_lora method failed: ").removeprefix("Call to remove_lora method failed: ")
    )
    return text or type(error).__name__
