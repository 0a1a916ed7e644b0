"""The forward pass of a Llama-family decoder over a mixed batch of prefill chunks and decoding sequences.

`dynamo.reference.core` builds a `Batch` per engine step and calls `Model`; nothing here knows about requests.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dynamo.reference.attention import DecodeGroup, PrefillSpan, attend_decode, attend_prefill, decode_mask
from dynamo.reference.kv_cache import KvCache
from dynamo.reference.lora import LoraAdapter, LoraLayer
from dynamo.reference.model_config import ModelConfig
from dynamo.reference.rope import RotaryEmbedding
from dynamo.reference.weights import LayerWeights, Linear, ModelWeights

__all__ = ["Batch", "ForwardModel", "Model"]

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]
_Deltas = list[tuple[Indices, LoraLayer]]


@dataclasses.dataclass(slots=True)
class Batch:
    """The tokens of one engine step, in rows."""

    token_ids: Indices
    positions: Indices
    slots: Indices
    """Where each row's key and value go: block number * block size + offset."""
    decodes: list[DecodeGroup]
    prefills: list[PrefillSpan]
    output_rows: Indices
    """Rows whose final hidden state is wanted."""
    adapters: list[tuple[Indices, LoraAdapter]]
    """Rows that each LoRA adapter applies to."""


class ForwardModel(Protocol):
    """What the engine core needs of a model; tests put a cheap one behind the same seam."""

    def forward(self, batch: Batch, cache: KvCache) -> Array:
        """Write keys and values of all rows to `cache`; final hidden states ``[len(output_rows), hidden_size]``."""
        ...

    def logits(self, hidden: Array) -> Array:
        """``[n, hidden_size]`` to ``[n, vocab_size]``."""
        ...


class Model:
    """A decoder with its weights."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, max_positions: int) -> None:
        self.config = config
        self._weights = weights
        self._rope = RotaryEmbedding(config, max_positions)
        self._scale = np.float32(config.head_dim**-0.5)

    def forward(self, batch: Batch, cache: KvCache) -> Array:
        """See `ForwardModel`."""
        config = self.config
        angles = self._rope.angles(batch.positions)
        masks = {
            window: [decode_mask(group, cache.block_size, window) for group in batch.decodes]
            for window in set(config.windows)
        }
        x = self._weights.embedding[batch.token_ids]
        # exp(-gate) may overflow to infinity in the activation, where x / inf = 0 is the right limit.
        with np.errstate(over="ignore"):
            for index, layer in enumerate(self._weights.layers):
                deltas = [(rows, adapter.layers[index]) for rows, adapter in batch.adapters]
                window = config.windows[index]
                x = self._attention(x, layer, index, window, masks[window], batch, cache, angles, deltas)
                x = self._mlp(x, layer, deltas)
        return rms_norm(x[batch.output_rows], self._weights.final_norm, config.rms_norm_eps)

    def logits(self, hidden: Array) -> Array:
        """See `ForwardModel`."""
        return hidden @ self._weights.head

    def _attention(
        self,
        x: Array,
        layer: LayerWeights,
        index: int,
        window: int | None,
        masks: list[Array],
        batch: Batch,
        cache: KvCache,
        angles: tuple[Array, Array],
        deltas: _Deltas,
    ) -> Array:
        config = self.config
        rotated = config.num_heads + config.num_kv_heads
        normed = rms_norm(x, layer.input_norm, config.rms_norm_eps)
        heads = _project(normed, layer.qkv, deltas, "qkv").reshape(len(x), -1, config.head_dim)
        queries_keys = heads[:, :rotated]
        if layer.qk_norm is not None:
            queries_keys = rms_norm(queries_keys, layer.qk_norm, config.rms_norm_eps)
        queries_keys = self._rope.rotate(queries_keys, angles)
        queries = queries_keys[:, : config.num_heads] * self._scale
        keys, values = cache.write(index, batch.slots, queries_keys[:, config.num_heads :], heads[:, rotated:])
        grouped = queries.reshape(len(x), config.num_kv_heads, -1, config.head_dim)
        attended = np.empty_like(grouped)
        for group, mask in zip(batch.decodes, masks, strict=True):
            attended[group.rows] = attend_decode(grouped[group.rows], keys, values, group.tables, mask)
        for span in batch.prefills:
            rows = slice(span.start, span.stop)
            attended[rows] = attend_prefill(grouped[rows], keys, values, span, window)
        return x + _project(attended.reshape(len(x), -1), layer.output, deltas, "output")

    def _mlp(self, x: Array, layer: LayerWeights, deltas: _Deltas) -> Array:
        normed = rms_norm(x, layer.post_norm, self.config.rms_norm_eps)
        fused = _project(normed, layer.gate_up, deltas, "gate_up")
        gate, up = fused[:, : self.config.intermediate_size], fused[:, self.config.intermediate_size :]
        activated = np.negative(gate)  # silu(g) = g / (1 + exp(-g)), in one buffer
        np.exp(activated, out=activated)
        activated += 1.0
        np.divide(gate, activated, out=activated)
        activated *= up
        return x + _project(activated, layer.down, deltas, "down")


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Root mean square normalisation over the last axis (arXiv 1910.07467)."""
    mean_square = np.einsum("...i,...i->...", x, x) / np.float32(x.shape[-1])
    normed: Array = x * (1.0 / np.sqrt(mean_square + np.float32(eps)))[..., None]
    normed *= weight
    return normed


def _project(x: Array, linear: Linear, deltas: _Deltas, name: str) -> Array:
    y = linear(x)
    for rows, layer in deltas:
        delta = layer.get(name)
        if delta is not None:
            y[rows] += (x[rows] @ delta.down) @ delta.up
    return y
