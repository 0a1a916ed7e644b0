"""The reference engine beside transformers and torch: tokens per second, CPU and KV memory.

Two Llama models in float32: the packaged demo model, and one of 12 million parameters that is made here with random
weights. Decoding is greedy and ignores end-of-sequence, prompts are new in every round (no prefix is ever cached), and
both sides run with one thread and with one per core: the faster one of each counts.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from benchmarks.harness.measure import Result, Sample, alternate
from benchmarks.harness.rows import Options, Row
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.llm import PreprocessedRequest, SamplingOptions, StopConditions, pack_token_ids
from dynamo.reference import demo_model_directory
from dynamo.reference.blas import set_blas_threads
from dynamo.reference.engine import ReferenceEngine
from dynamo.reference.model_config import load_model_config
from dynamo.runtime.context import Context

__all__ = ["run"]

PEER = "transformers + torch"
OURS = "reference engine"
PROMPT_TOKENS = 64
STREAMS = (1, 16)
BAR = 1.0

Prompts = npt.NDArray[np.uint32]


def run(options: Options) -> Iterator[Row]:
    """Rows for both models, one stream and sixteen."""
    new_tokens, rounds = (24, 2) if options.quick else (64, 5)
    with tempfile.TemporaryDirectory() as folder:
        generated = _generate_model(Path(folder))
        for label, directory in (("demo model", demo_model_directory()), ("12M model", generated)):
            with _Ours(directory) as ours:
                peer = _Peer(directory)
                for streams in STREAMS:
                    yield from _compare(f"{label}, {_streams(streams)}", ours, peer, streams, new_tokens, rounds)
                yield Row(
                    name=f"{label}, KV memory per cached token",
                    value=ours.kv_bytes_per_token / 1024,
                    unit="KiB",
                    better="lower",
                    reference=PEER,
                    reference_value=peer.kv_bytes_per_token() / 1024,
                )


def _compare(name: str, ours: _Ours, peer: _Peer, streams: int, new_tokens: int, rounds: int) -> Iterator[Row]:
    prompts = _prompts(streams, ours.vocab_size)

    def work(engine: _Ours | _Peer, threads: int) -> Callable[[], float]:
        return lambda: engine.generate(next(prompts), new_tokens, threads)

    thread_counts = sorted({1, os.cpu_count() or 1})
    sides = ((OURS, ours), (PEER, peer))
    works = {f"{label}, {count}": work(side, count) for count in thread_counts for label, side in sides}
    results = alternate(works, rounds)
    mine, theirs = (_fastest(results, label) for label in (OURS, PEER))
    yield _row(f"{name}, speed", "tokens/s", mine.per_second, theirs.per_second, "higher", BAR)
    cost, peer_cost = mine.cpu_seconds_per_unit * 1e3, theirs.cpu_seconds_per_unit * 1e3
    yield _row(f"{name}, CPU", "ms/token", cost, peer_cost, "lower", None)


def _fastest(results: dict[str, Result], label: str) -> Result:
    own = (result for name, result in results.items() if name.startswith(label))
    return max(own, key=lambda result: result.per_second.median)


def _row(name: str, unit: str, ours: Sample, peer: Sample, better: Any, bar: float | None) -> Row:
    return Row(
        name=name,
        value=ours.median,
        low=ours.low,
        high=ours.high,
        unit=unit,
        better=better,
        reference=PEER,
        reference_value=peer.median,
        bar=bar,
    )


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def _prompts(streams: int, vocab_size: int) -> Iterator[Prompts]:
    """Prompts that never repeat, shape ``[streams, PROMPT_TOKENS]``; the lowest ids are left out, often special."""
    for seed in itertools.count():
        yield np.random.default_rng(seed).integers(16, vocab_size, (streams, PROMPT_TOKENS), dtype=np.uint32)


class _Ours:
    """A started engine, driven from synchronous code on an event loop of its own."""

    def __init__(self, directory: Path) -> None:
        config = load_model_config(directory)
        self.vocab_size = config.vocab_size
        self.kv_bytes_per_token = config.kv_bytes_per_token
        self._loop = asyncio.new_event_loop()
        self._engine = ReferenceEngine(EngineOptions(model=str(directory)))
        self._ids = itertools.count()

    def __enter__(self) -> Self:
        self._loop.run_until_complete(self._engine.start())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._engine.cleanup())
        self._loop.close()

    def generate(self, prompts: Prompts, new_tokens: int, threads: int) -> int:
        """Run all prompts at once; how many tokens came."""
        set_blas_threads(threads)  # of the process, so also of the engine's thread
        return self._loop.run_until_complete(self._generate(prompts, new_tokens))

    async def _generate(self, prompts: Prompts, new_tokens: int) -> int:
        counts = await asyncio.gather(*(self._stream(prompt, new_tokens) for prompt in prompts))
        return sum(counts)

    async def _stream(self, prompt: npt.NDArray[np.uint32], new_tokens: int) -> int:
        request = PreprocessedRequest(
            request_id=f"bench-{next(self._ids)}",
            model="bench",
            token_ids=pack_token_ids(prompt),
            sampling=SamplingOptions(temperature=0.0),
            stop=StopConditions(max_tokens=new_tokens, ignore_eos=True),
        )
        context = Context(request.request_id)
        return sum([len(output.token_ids) async for output in self._engine.generate(request, context)])


class _Peer:
    """The same weights in transformers, in float32 on the CPU."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self._model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=None)

    def generate(self, prompts: Prompts, new_tokens: int, threads: int) -> int:
        """Run all prompts as one batch; how many tokens came."""
        output = self._run(prompts, new_tokens, threads)
        return int(output.shape[0] * (output.shape[1] - prompts.shape[1]))

    def kv_bytes_per_token(self) -> float:
        """Size of the cache's tensors after a prompt, per token."""
        prompt = self._torch.full((1, PROMPT_TOKENS), 16)
        with self._torch.inference_mode():
            cache = self._model(prompt, use_cache=True).past_key_values
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors)) / PROMPT_TOKENS

    def _run(self, prompts: Prompts, new_tokens: int, threads: int) -> Any:
        torch = self._torch
        torch.set_num_threads(threads)
        inputs = torch.from_numpy(prompts.astype(np.int64))
        with torch.inference_mode():
            return self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
            )


def _generate_model(directory: Path) -> Path:
    """A Llama of 12 million parameters with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory
