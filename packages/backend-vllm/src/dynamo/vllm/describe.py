"""What a started vLLM engine is and can do, and which requests it can take at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo.errors import InvalidRequest
from dynamo.protocols.engine import EngineCapabilities, EngineConfig
from dynamo.protocols.llm import PreprocessedRequest
from dynamo.reference import demo_model_directory
from dynamo.vllm.sampling import GUIDED_KINDS

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["EngineFacts", "describe"]


@dataclasses.dataclass(frozen=True)
class EngineFacts:
    """A started engine, as far as requests and the model's card depend on it."""

    vllm_config: VllmConfig
    tasks: frozenset[str]
    """vLLM's words: generate, embed, ..."""
    log_stats: bool

    @property
    def dp_size(self) -> int:
        """Ranks that this engine has."""
        return int(self.vllm_config.parallel_config.data_parallel_size)

    @property
    def publishes_kv_events(self) -> bool:
        """Whether there is something for `dynamo.vllm.kv_events` to follow."""
        events = self.vllm_config.kv_events_config
        caches = self.vllm_config.cache_config.enable_prefix_caching
        return bool(caches and events and events.enable_kv_cache_events and events.publisher == "zmq")

    def config(self, name: str, directory: Path) -> EngineConfig:
        """For the worker host."""
        config, is_demo = self.vllm_config, directory == demo_model_directory()
        return EngineConfig(
            model=name,
            model_directory=directory,
            context_length_tokens=config.model_config.max_model_len,
            block_size_tokens=config.cache_config.block_size,
            total_kv_blocks=(config.cache_config.num_gpu_blocks or 0) // self.dp_size,
            max_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            max_running_requests=config.scheduler_config.max_num_seqs,
            dp_size=self.dp_size,
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            # Other models' formats are known to who serves them: --dyn-tool-call-parser, --dyn-reasoning-parser.
            tool_call_parser="hermes" if is_demo else None,
            reasoning_parser="basic" if is_demo else None,
            capabilities=EngineCapabilities(
                kv_events=self.publishes_kv_events,
                load=self.log_stats,
                lora=config.lora_config is not None,
                embeddings="embed" in self.tasks,
                guided=[] if config.model_config.skip_tokenizer_init else list(GUIDED_KINDS),
                logprobs=True,
                resume=True,
            ),
        )

    def check(self, request: PreprocessedRequest, prompt: Sequence[int]) -> None:
        """Refuse what vLLM would refuse later, or in words that clients do not look for.

        Raises:
            InvalidRequest: the prompt is empty or too long (`reason` ``context_length_exceeded``), or asks for what
                this engine has not.
        """
        task = "embed" if request.embed else "generate"
        if task not in self.tasks:
            raise InvalidRequest(f"this model does not {task}", param="model")
        if not 0 <= request.prior_output_tokens < max(1, len(prompt)):
            raise InvalidRequest(
                f"{request.prior_output_tokens} prior output tokens cannot be part of {len(prompt)}",
                param="prior_output_tokens",
            )
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="token_ids")
        context = self.vllm_config.model_config.max_model_len
        if len(prompt) > context - (0 if request.embed else 1):
            raise InvalidRequest(
                f"the prompt has {len(prompt)} tokens; this model takes {context}, prompt and output together",
                param="token_ids",
                reason="context_length_exceeded",
            )
        if request.dp_rank is not None and not 0 <= request.dp_rank < self.dp_size:
            raise InvalidRequest(f"there is no data-parallel rank {request.dp_rank}", param="dp_rank")
        if request.kv_transfer_params is not None:
            raise InvalidRequest("this worker takes no KV blocks from others", param="kv_transfer_params")


async def describe(llm: AsyncLLM) -> EngineFacts:
    """Ask a started engine."""
    return EngineFacts(llm.vllm_config, frozenset(await llm.get_supported_tasks()), llm.log_stats)
