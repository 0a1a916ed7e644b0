"""Where an adapter comes from: the URI that somebody sent, turned into a directory that is safe to load.

Used by `dynamo.worker.loras`. Only safetensors and JSON are taken: engines would unpickle other formats.
"""

from __future__ import annotations

import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dynamo.errors import InvalidRequest

__all__ = ["check_adapter_files", "directory_of"]

_CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_CONFIG_LIMIT_BYTES = 1 << 20


def directory_of(uri: str, root: Path) -> Path:
    """The directory under `root` that a ``file://`` URI names, symlinks followed. Reads the disk.

    Raises:
        InvalidRequest: another scheme, no absolute path, or a path that leads out of `root`.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise _bad_uri(uri, str(error)) from error
    if parts.scheme != "file":
        raise InvalidRequest(
            f"adapters cannot be loaded from {parts.scheme or 'a path without a scheme'}",
            param="source.uri",
            hint="download the adapter to the directory of DYN_LORA_PATH and send file:///DIRECTORY",
        )
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not path.startswith("/"):
        raise _bad_uri(uri, "it is not file:///ABSOLUTE/PATH")
    try:
        found = Path(path).resolve()
        allowed = root.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a circle of symlinks
        raise _bad_uri(uri, str(error)) from error
    # The same answer whether it exists or not: who may load adapters may not look around on the disk.
    if found == allowed or not found.is_relative_to(allowed):
        raise InvalidRequest(
            "adapters are loaded only from below the directory of this worker's DYN_LORA_PATH", param="source.uri"
        )
    return found


def check_adapter_files(name: str, directory: Path, *, limit_bytes: int, root: Path | None = None) -> None:
    """Whether `directory` holds an adapter in PEFT's layout of at most `limit_bytes`; engines check what is in it.

    With a `root`, symlinks of its files must not lead out of that.

    Raises:
        InvalidRequest: a file is missing, no regular file, too large, or elsewhere.
    """
    for file_name, limit in ((_CONFIG_FILE, _CONFIG_LIMIT_BYTES), (_WEIGHTS_FILE, limit_bytes)):
        path = directory / file_name
        try:
            status = path.stat()
            inside = root is None or path.resolve().is_relative_to(root.resolve())
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidRequest(
                f"LoRA {name!r}: there is no {file_name} in {directory}",
                param="source.uri",
                hint="an adapter is a directory in PEFT's layout, with safetensors",
            ) from error
        if not stat.S_ISREG(status.st_mode) or not inside:
            raise InvalidRequest(f"LoRA {name!r}: {file_name} is not a file of {directory}", param="source.uri")
        if status.st_size > limit:
            raise InvalidRequest(
                f"LoRA {name!r}: {file_name} has {status.st_size} bytes; at most {limit} are taken",
                param="source.uri",
                hint="see --lora-size-limit-mib" if file_name == _WEIGHTS_FILE else None,
            )


def _bad_uri(uri: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{uri[:200]!r} is not a usable URI: {reason}", param="source.uri")
