"""The request log: one JSON line per engine request that ended, in a form that ``dynamo replay`` reads.

Opt-in. A line is a line of Mooncake's trace format with more fields: ``block_size`` says how many tokens each number of
``hash_ids`` stands for, and the numbers are our sequence hashes, so that equal numbers mean an equal prompt up to
there. Texts are written only when asked for. Everything costly (hashes, texts, JSON) happens in the writer's thread.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dynamo.frontend.line_file import LineFile
from dynamo.preprocessor.tokenizer import Tokenizer
from dynamo.protocols.hashing import seed_of, sequence_hashes
from dynamo.protocols.llm import unpack_token_ids

__all__ = ["RequestEntry", "RequestLog"]

#: JSON readers without 64-bit integers keep 53 bits; two of a million blocks are alike with a chance of 1 in 18,000.
_HASH_BITS = 53


class RequestEntry(msgspec.Struct, gc=False):
    """One engine request: one choice of one prompt."""

    request_id: str
    arrival_unix_seconds: float
    endpoint: str
    model: str
    lora: str | None
    cache_salt: str | None
    priority: int
    api_key_name: str
    block_size: int
    prompt: bytes
    """Packed token ids."""
    output: list[int]
    cached_tokens: int
    finish_reason: str
    """stop, length, tool_calls, cancelled, or the code of an error."""
    first_token_seconds: float | None
    """Since the arrival."""
    duration_seconds: float
    migrations: int
    worker: str
    """The last one, as instance id and rank; empty when no worker was found."""
    tokenizer: Tokenizer


class RequestLog(LineFile):
    """Appends to a file, or to standard output for ``-``."""

    def __init__(self, target: str, *, texts: bool) -> None:
        """With `texts`, lines have the prompt and the output as text.

        Raises:
            ConfigError: the file cannot be opened.
        """
        super().__init__(target, what="request log", param="request_log")
        self._texts = texts

    def write(self, entry: RequestEntry) -> None:
        """Queue one line."""
        self.put(lambda: self._line(entry), len(entry.prompt) + 8 * len(entry.output))

    def _line(self, entry: RequestEntry) -> dict[str, Any]:
        prompt = unpack_token_ids(entry.prompt)
        hashes = sequence_hashes(prompt, entry.block_size, seed_of(entry.lora, entry.cache_salt))
        first = entry.first_token_seconds
        line: dict[str, Any] = {
            "timestamp": round(entry.arrival_unix_seconds * 1000, 3),
            "input_length": len(prompt),
            "output_length": len(entry.output),
            "hash_ids": (hashes >> (64 - _HASH_BITS)).tolist(),
            "block_size": entry.block_size,
            "request_id": entry.request_id,
            "endpoint": entry.endpoint,
            "model": entry.model,
            "priority": entry.priority,
            "finish_reason": entry.finish_reason,
            "cached_tokens": entry.cached_tokens,
            "time_to_first_token_ms": None if first is None else round(first * 1000, 3),
            "duration_ms": round(entry.duration_seconds * 1000, 3),
            "migrations": entry.migrations,
            "worker": entry.worker,
        }
        if entry.lora:
            line["lora"] = entry.lora
        if entry.api_key_name:
            line["api_key_name"] = entry.api_key_name
        if self._texts:
            line["prompt"] = entry.tokenizer.decode(prompt.tolist(), skip_special_tokens=False)
            line["output"] = entry.tokenizer.decode(entry.output, skip_special_tokens=False)
        return line
