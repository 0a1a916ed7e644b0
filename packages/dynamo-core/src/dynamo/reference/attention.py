"""Attention of one layer over the paged KV cache.

Decoding sequences (one query each) of similar length share one batched product; a prefill chunk is computed alone, in
tiles of queries that bound the memory of its scores. Grouped-query heads: query head h reads KV head h // group.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

__all__ = ["DecodeGroup", "PrefillSpan", "attend_decode", "attend_prefill", "decode_mask"]

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

#: Scores of one tile of queries stay below this many floats (32 MiB).
TILE_FLOATS = 8 * 1024 * 1024
#: Keys of decoding sequences are gathered from their blocks in pieces of about this many floats.
GATHER_FLOATS = 1024 * 1024


@dataclasses.dataclass(slots=True)
class DecodeGroup:
    """Sequences that compute one token each, with block tables padded to one width."""

    rows: Indices
    """Row of each sequence in the batch, ``[n]``."""
    tables: Indices
    """Block numbers, ``[n, width]``; padding names block 0 and is masked."""
    lengths: Indices
    """Tokens in the KV cache, the new one included, ``[n]``."""


@dataclasses.dataclass(slots=True)
class PrefillSpan:
    """A chunk of one sequence: rows ``[start, stop)`` of the batch, its last tokens being the newest in the cache."""

    start: int
    stop: int
    table: Indices
    """Block numbers, ``[width]``."""
    length: int
    """Tokens in the KV cache, the chunk included."""


def decode_mask(group: DecodeGroup, block_size: int, window: int | None) -> Array:
    """What to add to scores: 0 where a sequence may look, -inf elsewhere; ``[n, 1, 1, width * block_size]``."""
    slots = np.arange(group.tables.shape[1] * block_size)
    hidden = slots >= group.lengths[:, None]
    if window is not None:
        hidden |= slots < group.lengths[:, None] - window
    return np.where(hidden, np.float32(-np.inf), np.float32(0.0))[:, None, None]


def attend_decode(queries: Array, keys: Array, values: Array, tables: Indices, mask: Array) -> Array:
    """One query per sequence.

    `queries` ``[n, kv_heads, group, dim]`` (scaled), `keys` and `values` of the layer
    ``[blocks, block_size, kv_heads, dim]``; the answer has the shape of `queries`.
    """
    n, kv_heads, _, dim = queries.shape
    result = np.empty_like(queries)
    tile = max(1, GATHER_FLOATS // (mask.shape[-1] * kv_heads * dim))
    for first in range(0, n, tile):
        rows = slice(first, first + tile)
        own_keys = keys[tables[rows]].reshape(-1, mask.shape[-1], kv_heads, dim)
        own_values = values[tables[rows]].reshape(own_keys.shape)
        scores = np.matmul(queries[rows], own_keys.transpose(0, 2, 3, 1))
        scores += mask[rows]
        total = _exponentiate(scores)
        np.matmul(scores, own_values.transpose(0, 2, 1, 3), out=result[rows])
        result[rows] /= total
    return result


def attend_prefill(queries: Array, keys: Array, values: Array, span: PrefillSpan, window: int | None) -> Array:
    """A chunk of one sequence, causal; `queries` and the answer ``[n, kv_heads, group, dim]``, keys as in decoding."""
    n, kv_heads, group, dim = queries.shape
    own_keys = keys[span.table].reshape(-1, kv_heads, dim)[: span.length].transpose(1, 2, 0)
    own_values = values[span.table].reshape(-1, kv_heads, dim)[: span.length].transpose(1, 0, 2)
    by_head = np.ascontiguousarray(queries.transpose(1, 2, 0, 3))  # [kv_heads, group, n, dim]
    result = np.empty_like(by_head)
    slots = np.arange(span.length)
    tile = max(1, TILE_FLOATS // (kv_heads * group * span.length))
    for first in range(0, n, tile):
        last = min(first + tile, n)
        positions = np.arange(span.length - n + first, span.length - n + last)[:, None]
        hidden = slots > positions
        if window is not None:
            hidden |= slots <= positions - window
        rows = by_head[:, :, first:last].reshape(kv_heads, -1, dim)
        scores = np.matmul(rows, own_keys).reshape(kv_heads, group, last - first, span.length)
        scores += np.where(hidden, np.float32(-np.inf), np.float32(0.0))
        total = _exponentiate(scores)
        tiled = np.matmul(scores.reshape(kv_heads, -1, span.length), own_values)
        result[:, :, first:last] = tiled.reshape(kv_heads, group, last - first, dim) / total
    return result.transpose(2, 0, 1, 3)


def _exponentiate(scores: Array) -> Array:
    """Softmax in place without its division; returns the sums, last axis 1. Dividing the result is less work."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total: Array = scores.sum(axis=-1, keepdims=True)
    return total
