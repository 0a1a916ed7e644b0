"""Reading a model directory's small files: which ones a frontend needs, bounded, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from dynamo.errors import ConfigError

__all__ = ["FILE_LIMIT_BYTES", "MODEL_FILES", "json_object", "read_model_files"]

#: Everything of a model that the text side uses; weights stay with the worker.
MODEL_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
#: The largest tokenizer.json of a public model is about 35 MB.
FILE_LIMIT_BYTES = 64 * 1024 * 1024


def read_model_files(directory: Path | str, names: Iterable[str] = MODEL_FILES) -> dict[str, bytes]:
    """Contents of those of `names` that exist in `directory`.

    Raises:
        ConfigError: `directory` is none, or a file is unreadable or above `FILE_LIMIT_BYTES`.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ConfigError(f"model directory {root} does not exist", hint="give a directory with config.json in it")
    files = {}
    for name in names:
        path = root / name
        try:
            with path.open("rb") as file:
                data = file.read(FILE_LIMIT_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        if len(data) > FILE_LIMIT_BYTES:
            raise ConfigError(f"{path} is larger than {FILE_LIMIT_BYTES} bytes")
        files[name] = data
    return files


def json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in file `name`; empty when there is no such file.

    Raises:
        ConfigError: it is not JSON, or not an object.
    """
    if name not in files:
        return {}
    try:
        value = msgspec.json.decode(files[name])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is corrupt: {error}", hint="download the model again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must hold a JSON object, not {type(value).__name__}")
    return value
