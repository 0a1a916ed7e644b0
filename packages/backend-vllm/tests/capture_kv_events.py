"""Records what a real vLLM engine publishes, into `data/kv_events_*.json`; run it where vLLM is installed.

    python packages/backend-vllm/tests/capture_kv_events.py int|bytes [PORT]

Each entry of a file has the step that caused the message, its topic and number, and the payload in hex. The prompts
are numbers, not text. `test_kv_wire.py` and `test_kv_translation.py` of dynamo-core read the files.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).parents[2] / "dynamo-core/tests/protocols/data"
BLOCK = 32


def prompt(seed: int, tokens: int) -> list[int]:
    return [3 + (seed * 131 + position * 7) % 400 for position in range(tokens)]


def write_adapter(folder: Path) -> None:
    """A LoRA adapter of the demo model, rank 8, of ones."""
    import torch
    from safetensors.torch import save_file

    from dynamo.reference import demo_model_directory

    config = json.loads((demo_model_directory() / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config.get("head_dim", hidden // config["num_attention_heads"]) * config["num_attention_heads"]
    tensors = {}
    for layer in range(layers):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{prefix}.lora_A.weight"] = torch.full((8, hidden), 0.01)
        tensors[f"{prefix}.lora_B.weight"] = torch.full((heads, 8), 0.01)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


async def record(form: str, port: int, adapter: Path) -> None:
    import zmq
    import zmq.asyncio
    from vllm import SamplingParams
    from vllm.config import KVEventsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    from dynamo.reference import demo_model_directory

    arguments = AsyncEngineArgs(
        model=str(demo_model_directory()),
        enforce_eager=True,
        dtype="float32",
        max_model_len=340,
        block_size=BLOCK,
        max_num_seqs=4,
        num_gpu_blocks_override=12,
        enable_lora=True,
        max_lora_rank=8,
        kv_cache_memory_bytes=64 << 20,
        prefix_caching_hash_algo="sha256" if form == "int" else "sha256_cbor",
        kv_events_config=KVEventsConfig(
            enable_kv_cache_events=True,
            publisher="zmq",
            endpoint=f"tcp://*:{port}",
            replay_endpoint=f"tcp://*:{port + 1}",
            topic="kv",
        ),
    )
    engine = AsyncLLM.from_engine_args(arguments)
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(f"tcp://127.0.0.1:{port}")
    await asyncio.sleep(1.0)
    entries = []

    async def step(tag: str, ids: list[int], tokens: int = 2, lora: str | None = None, **inputs: str) -> None:
        sampling = SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        text = TokensPrompt(prompt_token_ids=ids, **inputs)
        request = LoRARequest(lora, 1, str(adapter)) if lora else None
        async for _ in engine.generate(text, sampling, f"{tag}-{time.time()}", lora_request=request):
            pass
        while await socket.poll(500):
            topic, number, payload = await socket.recv_multipart()
            entries.append(
                {
                    "tag": tag,
                    "topic": topic.decode(),
                    "number": int.from_bytes(number, "big"),
                    "hex": payload.hex(),
                }
            )

    await step("stored", prompt(1, 100))
    await step("continued", prompt(1, 100) + prompt(9, 40), tokens=30)
    await step("salted", prompt(1, 70), cache_salt="tenant-1")
    await step("adapted", prompt(4, 70), lora="adapter-a")
    await step("adapted and salted", prompt(4, 70), lora="adapter-a", cache_salt="tenant-2")
    await step("evicting", prompt(2, 320))
    await engine.reset_prefix_cache()
    await step("cleared", prompt(3, 40))
    (DATA / f"kv_events_{form}.json").write_text(json.dumps(entries, indent=1) + "\n")
    engine.shutdown()
    context.destroy(linger=0)


if __name__ == "__main__":
    if sys.argv[1] == "bytes":
        os.environ["VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES"] = "0"
    with tempfile.TemporaryDirectory() as scratch:
        write_adapter(Path(scratch))
        asyncio.run(record(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5871, Path(scratch)))
