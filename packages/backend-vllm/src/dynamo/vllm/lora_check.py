"""Whether an adapter's matrices fit the base model's, from the headers of both: vLLM copies whatever is small enough.

vLLM 0.32 takes an adapter whose rank is not the one that it states, and one of a model with fewer or smaller layers,
and then answers with nonsense. Called by `dynamo.vllm.lora` before vLLM sees the adapter.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from dynamo.errors import ConfigError, InvalidRequest
from dynamo.reference.safetensors import TensorFile, open_tensors

__all__ = ["check_adapter"]

_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight\Z")


class _AdapterConfig(msgspec.Struct, frozen=True):
    r: int
    rank_pattern: dict[str, int] = {}
    target_parameters: Any = None


def check_adapter(name: str, directory: Path, model_directory: Path) -> None:
    """Compare an adapter in PEFT's layout with the weights that it is for; what cannot be compared passes.

    Raises:
        InvalidRequest: its files cannot be read, or a matrix does not fit.
    """
    try:
        settings = msgspec.json.decode((directory / "adapter_config.json").read_bytes(), type=_AdapterConfig)
        adapter = _shapes(directory / "adapter_model.safetensors")
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"LoRA {name!r}: adapter_config.json cannot be read: {error}", param="lora") from error
    except ConfigError as error:
        raise InvalidRequest(f"LoRA {name!r}: {error.message}", param="lora", hint=error.hint) from error
    same_rank = not settings.rank_pattern and not settings.target_parameters
    base = _base_shapes(model_directory)
    placed = [match for key in adapter if (match := _NAME.match(key))]
    known = {match["module"] for match in placed if f"{match['module']}.weight" in base}
    for match in placed:
        rank, other = _sides(adapter[match.string], match["side"])
        if same_rank and rank != settings.r:
            raise InvalidRequest(
                f"LoRA {name!r} states rank {settings.r}, and {match.string!r} has rank {rank}", param="lora"
            )
        module = match["module"]
        if module in known:
            outputs, inputs = base[f"{module}.weight"]
            wanted = inputs if match["side"] == "A" else outputs
            if other != wanted:
                raise InvalidRequest(
                    f"LoRA {name!r} does not fit: {match.string!r} is for {other}, the base model has {wanted}",
                    param="lora",
                )
        elif known:
            # Names that are all unknown are another convention, which vLLM may know; some unknown are another model.
            raise InvalidRequest(f"LoRA {name!r} was not made for this model: it has no {module!r}", param="lora")


def _sides(shape: list[int], side: str) -> tuple[int, int]:
    """The rank of a matrix, and its other side."""
    if len(shape) != 2:
        return -1, -1
    return (shape[0], shape[1]) if side == "A" else (shape[1], shape[0])


def _shapes(path: Path) -> dict[str, list[int]]:
    file = TensorFile(path)
    return {name: file.shape(name) for name in file.names}


def _base_shapes(directory: Path) -> dict[str, list[int]]:
    """Shapes of the base model's matrices; none where they are quantized, packed or no safetensors."""
    try:
        if b'"quantization_config"' in (directory / "config.json").read_bytes():
            return {}
        tensors = open_tensors(directory)
    except (OSError, ConfigError):
        return {}
    shapes = {name: file.shape(name) for name, file in tensors.items()}
    return {name: shape for name, shape in shapes.items() if len(shape) == 2}
