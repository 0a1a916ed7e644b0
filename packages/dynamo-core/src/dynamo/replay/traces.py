"""Reads request traces: Mooncake's JSON lines and Azure's CSV. Used by `command`, and by whoever drives `simulation`.

Mooncake: ``timestamp`` (ms), ``input_length``, ``output_length`` (tokens) and ``hash_ids``, one number for each 512
tokens of the prompt; equal numbers mean equal text. The request log of a frontend is that with a ``block_size`` of its
own, and perhaps ``priority`` and ``api_key_name``. Azure: ``TIMESTAMP,ContextTokens,GeneratedTokens``, which says
nothing of shared prefixes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, NamedTuple, TextIO

import msgspec
import numpy as np

from dynamo.errors import ConfigError
from dynamo.protocols.hashing import HashState, block_hashes, extend

__all__ = ["MOONCAKE_BLOCK_TOKENS", "Trace", "TraceRequest", "ideal_cached_tokens", "read_trace"]

MOONCAKE_BLOCK_TOKENS = 512
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_AZURE_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?(?:Z|\+00:00)?\Z")
#: A request of more tokens is an error in the trace.
_MOST_TOKENS = 1 << 28

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=_MOST_TOKENS)]


@dataclass(frozen=True)
class TraceRequest:
    """One request."""

    arrival_seconds: float
    """Since the first request."""
    input_tokens: int
    output_tokens: int
    hashes: list[int]
    """Names of the prompt's full blocks and of all before each; empty where the trace does not know them."""
    priority: int = 0
    """Lower is sooner."""
    tenant: str = ""
    """Whose it is; empty where the trace does not say."""


class Trace(NamedTuple):
    """Requests by time of arrival."""

    name: str
    block_size: int
    """Tokens per block of `TraceRequest.hashes`."""
    requests: list[TraceRequest]


class _MooncakeLine(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1, le=_MOST_TOKENS)]
    output_length: _Tokens
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]]
    block_size: Annotated[int, msgspec.Meta(ge=1, le=_MOST_TOKENS)] = MOONCAKE_BLOCK_TOKENS
    priority: Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)] = 0
    api_key_name: str = ""


class _Row(NamedTuple):
    """A request as the file has it: its time is since any moment."""

    seconds: float
    input_tokens: int
    output_tokens: int
    hash_ids: list[int]
    block_size: int = MOONCAKE_BLOCK_TOKENS
    priority: int = 0
    tenant: str = ""


def read_trace(path: Path, *, limit: int | None = None, speed: float = 1.0) -> Trace:
    """Read a trace; a ``.csv`` is Azure's, everything else Mooncake's.

    Args:
        path: the file.
        limit: read only so many requests.
        speed: requests come so many times as fast.

    Raises:
        ConfigError: the file cannot be read, has no requests, or a line is malformed (the message names it).
    """
    parse = _azure_rows if path.suffix == ".csv" else _mooncake_rows
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_first(parse(file, path), limit))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace {path} cannot be read: {error}", param="trace") from error
    if not rows:
        raise ConfigError(f"trace {path} has no requests", param="trace")
    start = min(row.seconds for row in rows)
    requests = [
        TraceRequest(
            (row.seconds - start) / speed,
            row.input_tokens,
            max(1, row.output_tokens),
            _hashes(row),
            row.priority,
            row.tenant,
        )
        for row in rows
    ]
    requests.sort(key=lambda request: request.arrival_seconds)
    return Trace(path.stem, rows[0].block_size, requests)


def ideal_cached_tokens(trace: Trace) -> Iterator[int]:
    """Prompt tokens of each request that one cache without bounds would have found, under the rules of the engine.

    Only full blocks are found, and the last token of a prompt is always computed.
    """
    seen: set[int] = set()
    for request in trace.requests:
        reusable = request.hashes[: (request.input_tokens - 1) // trace.block_size]
        yield trace.block_size * next((n for n, name in enumerate(reusable) if name not in seen), len(reusable))
        seen.update(request.hashes)


def _first(rows: Iterable[_Row], limit: int | None) -> Iterator[_Row]:
    for number, row in enumerate(rows):
        if number == limit:
            return
        yield row


def _hashes(row: _Row) -> list[int]:
    full = row.input_tokens // row.block_size
    # An id is 64 bits, so two words.
    ids = np.asarray(row.hash_ids[:full], np.uint64).view(np.uint32)
    hashes, _ = extend(HashState(0, 0), block_hashes(ids, 2))
    names: list[int] = hashes.tolist()
    return names


def _mooncake_rows(file: TextIO, path: Path) -> Iterator[_Row]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    block_size = 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise _malformed(path, number, str(error)) from error
        full = row.input_length // row.block_size
        if len(row.hash_ids) < full:
            raise _malformed(path, number, f"{len(row.hash_ids)} hash_ids for {full} full blocks")
        block_size = block_size or row.block_size
        if row.block_size != block_size:
            raise _malformed(path, number, f"blocks of {row.block_size} tokens, where those before have {block_size}")
        yield _Row(
            row.timestamp / 1000,
            row.input_length,
            row.output_length,
            row.hash_ids,
            row.block_size,
            row.priority,
            row.api_key_name,
        )


def _azure_rows(file: TextIO, path: Path) -> Iterator[_Row]:
    reader = csv.DictReader(file)
    if missing := [name for name in _AZURE_COLUMNS if name not in (reader.fieldnames or ())]:
        raise _malformed(path, 1, f"there is no column {missing[0]}; Azure's traces have {', '.join(_AZURE_COLUMNS)}")
    for row in reader:
        number = reader.line_num
        time, prompt, generated = (row[name] or "" for name in _AZURE_COLUMNS)
        matched = _AZURE_TIME.match(time.strip())
        if matched is None:
            raise _malformed(path, number, f"TIMESTAMP {time!r} is not like 2023-11-16 18:15:46.6805900")
        try:
            moment = datetime.fromisoformat(f"{matched[1]}T{matched[2]}").replace(tzinfo=timezone.utc)
            input_tokens, output_tokens = int(prompt), int(generated)
        except ValueError as error:
            raise _malformed(path, number, str(error)) from error
        if not 1 <= input_tokens <= _MOST_TOKENS or not 0 <= output_tokens <= _MOST_TOKENS:
            raise _malformed(path, number, f"{input_tokens} context and {output_tokens} generated tokens")
        yield _Row(moment.timestamp() + float(matched[3] or 0), input_tokens, output_tokens, [])


def _malformed(path: Path, line: int, reason: str) -> ConfigError:
    return ConfigError(f"{path}:{line}: {reason}", param="trace", hint="a trace is Mooncake's .jsonl or Azure's .csv")
