"""Names and numbers of LoRA adapters: the worker host checks and shows them, engines that number adapters use them."""

from __future__ import annotations

import hashlib
import re

from dynamo.errors import InvalidRequest

__all__ = ["LORA_NAME_LIMIT", "check_lora_name", "lora_id_of"]

#: Names travel in every card (at most 64 KiB) and are labels of metrics.
LORA_NAME_LIMIT = 128
#: What model ids of hubs are made of, and ``:`` and ``@``. Parts between slashes do not begin with a dot.
_NAME = re.compile(r"[A-Za-z0-9_][\w.:@-]*(/[A-Za-z0-9_][\w.:@-]*)*\Z", re.ASCII)


def check_lora_name(name: str) -> None:
    """Raises InvalidRequest unless `name` can be an adapter's, and so a model's."""
    if len(name) > LORA_NAME_LIMIT or not _NAME.match(name):
        raise InvalidRequest(
            f"{name[:LORA_NAME_LIMIT]!r} is not a valid name of a LoRA adapter",
            param="lora_name",
            hint=f"use up to {LORA_NAME_LIMIT} letters, digits and . _ - : @ /, with a letter or digit first",
        )


def lora_id_of(name: str) -> int:
    """A number for engines that know adapters by number: positive, below 2**31, the same in every process."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % (2**31 - 1) + 1
