"""Rotary position embeddings and their published scalings.

Sources: RoFormer (arXiv 2104.09864); linear: position interpolation (arXiv 2306.15595); yarn: arXiv 2309.00071; llama3:
the frequency bands published with Llama 3.1. Dynamic NTK changes every frequency once a sequence is longer than
``max_position_embeddings``, which would invalidate keys that are already cached; up to there it equals the default, and
the engine serves no longer context.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dynamo.reference.model_config import ModelConfig, RopeScaling

__all__ = ["RotaryEmbedding", "inverse_frequencies"]


class RotaryEmbedding:
    """Tables of cosines and sines for every position a sequence may have."""

    def __init__(self, config: ModelConfig, max_positions: int) -> None:
        frequencies, attention_factor = inverse_frequencies(config)
        angles = np.outer(np.arange(max_positions, dtype=np.float32), frequencies)
        self._half = config.head_dim // 2
        #: Shape ``[max_positions, 1, head_dim / 2]``: one row serves all heads.
        self._cos = (np.cos(angles) * attention_factor).astype(np.float32)[:, None]
        self._sin = (np.sin(angles) * attention_factor).astype(np.float32)[:, None]

    def angles(self, positions: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Cosines and sines of `positions`, each ``[n_tokens, 1, head_dim / 2]``; the same for all layers of a step."""
        return self._cos[positions], self._sin[positions]

    def rotate(
        self,
        heads: npt.NDArray[np.float32],
        angles: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    ) -> npt.NDArray[np.float32]:
        """Rotate ``[n_tokens, n_heads, head_dim]``; pairs are (i, i + head_dim / 2), as Hugging Face stores weights."""
        cos, sin = angles
        first, second = heads[..., : self._half], heads[..., self._half :]
        rotated = np.empty(heads.shape, np.float32)
        np.subtract(first * cos, second * sin, out=rotated[..., : self._half])
        np.add(second * cos, first * sin, out=rotated[..., self._half :])
        return rotated


def inverse_frequencies(config: ModelConfig) -> tuple[npt.NDArray[np.float32], float]:
    """Radians per position of each pair, ``[head_dim / 2]``, and the factor on cosines and sines (yarn, else 1)."""
    rope = config.rope
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    base: npt.NDArray[np.float32] = (1.0 / np.float32(rope.rope_theta) ** exponents).astype(np.float32)
    original = rope.original_max_position_embeddings or config.max_position_embeddings
    if rope.rope_type == "linear":
        return (base / rope.factor).astype(np.float32), 1.0
    if rope.rope_type == "llama3":
        return _llama3(base, rope, original), 1.0
    if rope.rope_type == "yarn":
        return _yarn(base, rope, original, config.head_dim)
    return base, 1.0


def _llama3(base: npt.NDArray[np.float32], rope: RopeScaling, original: int) -> npt.NDArray[np.float32]:
    """Long wavelengths are stretched by the factor, short ones kept, those between blended."""
    turns = original * base / (2 * math.pi)  # full turns within the original context
    kept = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
    blended: npt.NDArray[np.float32] = ((1.0 - kept) * base / rope.factor + kept * base).astype(np.float32)
    return blended


def _yarn(
    base: npt.NDArray[np.float32], rope: RopeScaling, original: int, head_dim: int
) -> tuple[npt.NDArray[np.float32], float]:
    def pair_with(turns: float) -> float:
        """Index of the pair that makes `turns` full turns within the original context."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = pair_with(rope.beta_fast or 32.0), pair_with(rope.beta_slow or 1.0)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp: npt.NDArray[np.float32] = np.clip(
        (np.arange(head_dim // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0.0, 1.0
    )
    frequencies = (base / rope.factor * ramp + base * (1.0 - ramp)).astype(np.float32)
    return frequencies, _yarn_attention_factor(rope)


def _yarn_attention_factor(rope: RopeScaling) -> float:
    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)
