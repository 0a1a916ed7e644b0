"""Reads safetensors files, trusting nothing in them.

Format: 8 bytes little-endian header length, a JSON header ``{name: {dtype, shape, data_offsets}}``, then the data.
Used for model weights and LoRA adapters. A file may be truncated or lie about its sizes: every offset is checked
against the file before an array is made of it.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.errors import ConfigError

__all__ = ["TensorFile", "open_tensors"]

#: As the format's own library: a header above this is a lie, not a model.
HEADER_LIMIT_BYTES = 100_000_000
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class TensorFile:
    """One safetensors file, memory-mapped; tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # mmap says ValueError for an empty file
            raise ConfigError(f"cannot read {path}: {error}") from error
        self._start, self._entries = self._read_header()

    @property
    def names(self) -> list[str]:
        """Tensors in the file."""
        return list(self._entries)

    def shape(self, name: str) -> list[int]:
        """The shape that the header states for tensor `name`."""
        return list(self._entries[name].shape)

    def check_length(self) -> None:
        """Whether all is there that the header lists.

        Raises:
            ConfigError: the file is cut off.
        """
        end = self._start + max((entry.data_offsets[1] for entry in self._entries.values()), default=0)
        if end > len(self._data):
            raise self._broken(f"it ends after {len(self._data)} of {end} bytes")

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Tensor `name` as float32, in the shape that the header states.

        Raises:
            ConfigError: the type is not a float type, the header disagrees with the file, or a value is not finite.
        """
        entry = self._entries[name]
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise ConfigError(
                f"tensor {name!r} of {self.path} has type {entry.dtype}",
                hint=f"the reference engine reads {', '.join(_DTYPES)}; quantized checkpoints are not supported",
            )
        begin, end = entry.data_offsets
        size = math.prod(entry.shape) * dtype.itemsize
        if min(entry.shape, default=0) < 0 or not 0 <= begin <= end <= len(self._data) - self._start:
            raise self._broken(f"tensor {name!r} lies outside the file")
        if end - begin != size:
            raise self._broken(
                f"tensor {name!r} of shape {entry.shape} needs {size} bytes, the header gives {end - begin}"
            )
        raw = np.frombuffer(self._data, dtype, count=size // dtype.itemsize, offset=self._start + begin)
        values = _to_float32(raw, entry.dtype).reshape(entry.shape)
        if not np.isfinite(values).all():
            raise ConfigError(
                f"tensor {name!r} of {self.path} holds NaN or infinite values", hint="the checkpoint is broken"
            )
        return values

    def _read_header(self) -> tuple[int, dict[str, _Entry]]:
        if len(self._data) < 8:
            raise self._broken("it has no header")
        length = int.from_bytes(self._data[:8], "little")
        if length > min(HEADER_LIMIT_BYTES, len(self._data) - 8):
            raise self._broken(f"its header claims {length} bytes of {len(self._data)}")
        try:
            header: dict[str, Any] = msgspec.json.decode(self._data[8 : 8 + length], type=dict[str, Any])
            header.pop("__metadata__", None)
            return 8 + length, msgspec.convert(header, dict[str, _Entry])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise self._broken(f"its header is not valid: {error}") from error

    def _broken(self, why: str) -> ConfigError:
        return ConfigError(f"{self.path} is not a valid safetensors file: {why}", hint="download the file again")


def open_tensors(directory: Path) -> dict[str, TensorFile]:
    """Tensor name to file, for ``model.safetensors`` or the shards that ``model.safetensors.index.json`` names.

    Raises:
        ConfigError: there are no weights, or the index is wrong.
    """
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        file = TensorFile(single)
        return dict.fromkeys(file.names, file)
    if not index.is_file():
        raise ConfigError(
            f"{directory} holds neither {single.name} nor {index.name}",
            hint="the reference engine reads safetensors weights only",
        )
    try:
        weight_map = msgspec.convert(msgspec.json.decode(index.read_bytes())["weight_map"], dict[str, str])
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as error:
        raise ConfigError(f"{index} is not a valid weight index: {error}") from error
    shards: dict[str, TensorFile] = {}
    for shard in set(weight_map.values()):
        if Path(shard).name != shard:
            raise ConfigError(f"{index} names a shard outside its directory: {shard!r}")
        shards[shard] = TensorFile(directory / shard)
    for name, shard in weight_map.items():
        if name not in shards[shard].names:
            raise ConfigError(
                f"{index} says that {shard} holds {name!r}; it does not", hint="download the shards again"
            )
    return {name: shards[shard] for name, shard in weight_map.items()}


def _to_float32(raw: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)
