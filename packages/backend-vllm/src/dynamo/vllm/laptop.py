"""What makes vLLM usable on a CPU, where the user chose nothing else.

Two OpenMP threads per process that spin while they wait make two engines on two cores 50 times slower than one thread
each; vLLM's own binding puts every engine on the same core; and its default cache is 92 % of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["BLOCK_SIZE_TOKENS", "CPU_ENVIRONMENT", "KV_CACHE_BYTES", "cpu_arguments", "one_process"]

#: The CPU attention kernels want multiples of 32; vLLM's default of 128 makes prefix hits coarse.
BLOCK_SIZE_TOKENS = 32
#: 512 MiB: 4,600 tokens of a 0.6 B model in bfloat16, two million of the demo model.
KV_CACHE_BYTES = 512 << 20


#: To be set before vLLM is imported; what the user set comes first.
CPU_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def one_process(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Variables that put the worker of a model that is not split into the engine's process.

    That is one process less, and no message queue in /dev/shm.
    """
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    split = any(arguments.get(name, 1) > 1 for name in sizes)
    return {} if split else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def cpu_arguments(chosen: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Engine arguments to add to those that the user chose."""
    defaults: dict[str, Any] = {
        "block_size": BLOCK_SIZE_TOKENS,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": -1,  # as long as fits into the KV cache
    }
    sized = {"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"} & chosen.keys()
    if not sized and "VLLM_CPU_KVCACHE_SPACE" not in environ:
        defaults["kv_cache_memory_bytes"] = KV_CACHE_BYTES
    return {name: value for name, value in defaults.items() if name not in chosen}
