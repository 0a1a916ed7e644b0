"""The memory of the paged KV cache. Which block belongs to whom is the business of `dynamo.reference.block_pool`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dynamo.errors import ConfigError
from dynamo.reference.model_config import ModelConfig

__all__ = ["KvCache"]

Array = npt.NDArray[np.float32]


class KvCache:
    """Keys and values of all layers, float32, ``[layers, 2, blocks, block_size, kv_heads, head_dim]``.

    A block of one layer is contiguous, so gathering a sequence copies whole blocks, and a sequence's keys are
    ``[tokens, kv_heads * head_dim]`` row-major, which BLAS reads per head without another copy.
    """

    def __init__(self, config: ModelConfig, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        shape = (config.num_layers, 2, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        try:
            self._data: Array = np.zeros(shape, np.float32)  # zeros: masked slots must be finite
        except (MemoryError, ValueError) as error:
            raise ConfigError(
                f"{num_blocks} KV blocks of {block_size} tokens do not fit in memory",
                hint="lower --num-blocks or --kv-cache-memory-mib",
            ) from error
        self._rows = self._data.reshape(*shape[:2], num_blocks * block_size, *shape[4:])

    def write(self, layer: int, slots: npt.NDArray[np.intp], keys: Array, values: Array) -> tuple[Array, Array]:
        """Store ``[n, kv_heads, head_dim]`` at `slots`; the layer's keys and values, by block."""
        self._rows[layer, 0][slots] = keys
        self._rows[layer, 1][slots] = values
        return self._data[layer, 0], self._data[layer, 1]

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of what :meth:`read_block` gives: ``[layers, 2, block_size, kv_heads, head_dim]``."""
        layers, both, _, block_size, kv_heads, dim = self._data.shape
        return layers, both, block_size, kv_heads, dim

    def read_block(self, block: int) -> Array:
        """A copy of one block, all layers."""
        return self._data[:, :, block].copy()

    def write_block(self, block: int, data: Array) -> None:
        """Overwrite one block with data of `block_shape`."""
        self._data[:, :, block] = data
