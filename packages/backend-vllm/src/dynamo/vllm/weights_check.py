"""Whether a model's files are whole: vLLM's words for one that is cut off name neither it nor what is wrong with it.

Called by `dynamo.vllm.engine` before vLLM is started, which takes long.
"""

from __future__ import annotations

from pathlib import Path

from dynamo.reference.safetensors import TensorFile

__all__ = ["check_weights"]


def check_weights(directory: Path) -> None:
    """Compare the headers of the safetensors files in `directory` with the files' lengths. Reads no weights.

    Raises:
        ConfigError: a file is cut off, or none of its kind.
    """
    for path in sorted(directory.glob("*.safetensors")):
        if path.is_file():
            TensorFile(path).check_length()
