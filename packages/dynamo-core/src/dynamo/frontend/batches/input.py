"""The input file of a batch: one JSON object per line, checked as a whole before the first request is made."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from dynamo.errors import InvalidRequest
from dynamo.frontend.batches.record import BatchFault
from dynamo.frontend.body_bounds import decode_json

__all__ = ["BatchLine", "InputLimits", "Inspection", "inspect_input", "read_lines"]

#: A file that is no batch at all would have one error per line.
_FAULTS = 100
_CUSTOM_ID_CHARACTERS = 256
#: Names of models are at most half as long; of what a client wrote so many characters are shown.
_SHOWN_CHARACTERS = 256
_AHEAD_BYTES = 256 << 10
#: Some scripts leave blank lines between requests.
_LINES_PER_REQUEST = 4


class InputLimits(NamedTuple):
    """Bounds of one file."""

    requests: int
    line_bytes: int


class BatchLine(msgspec.Struct):
    """One request."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]
    number: int = 0
    """Of the line in its file, from 1; not what the client wrote."""


class Inspection(msgspec.Struct):
    """What a file holds."""

    total: int = 0
    models: set[str] = set()
    faults: list[BatchFault] = []


def inspect_input(path: Path, endpoint: str, limits: InputLimits) -> Inspection:
    """Read the whole file; blocks for about 5 us per line.

    Raises:
        OSError: it cannot be read.
    """
    found = Inspection()
    seen: set[str] = set()
    for number, line in _lines(path, limits):
        found.total += 1
        if found.total > limits.requests:
            text = f"the file has more than {limits.requests} requests"
            found.faults.append(BatchFault("too_many_requests", text, number))
            break
        fault = _look(line, number, endpoint, limits, found, seen)
        if fault is not None:
            found.faults.append(fault)
            if len(found.faults) >= _FAULTS:
                break
    if not found.total:
        found.faults.append(BatchFault("empty_file", "the file has no requests"))
    return found


async def read_lines(path: Path, done: set[int], limits: InputLimits) -> AsyncIterator[BatchLine]:
    """The requests of a file that was inspected, without the lines in `done`; the disk is read in a thread.

    Raises:
        OSError: it cannot be read.
    """
    lines = _lines(path, limits)
    while piece := await asyncio.to_thread(_some, lines):
        for number, line in piece:
            if number not in done:
                request = decode_json(line, BatchLine)
                request.number = number
                yield request


def _lines(path: Path, limits: InputLimits) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers. One that is too long comes cut, one byte longer than allowed.

    Far behind as many lines as there may be requests, blank ones come too.
    """
    line_bytes, most_lines = limits.line_bytes, _LINES_PER_REQUEST * limits.requests + _FAULTS
    with path.open("rb") as file:
        number = 0
        while line := file.readline(line_bytes + 1):
            number += 1
            cut = len(line) > line_bytes
            while cut and not line.endswith(b"\n") and (rest := file.readline(line_bytes)) and rest[-1:] != b"\n":
                pass
            if number == 1:  # some editors mark UTF-8 there
                line = line.removeprefix(codecs.BOM_UTF8)
            # Blank lines do not matter, but a file of hundreds of millions would hold up everything else.
            if line.strip() or number > most_lines:
                yield number, line


def _some(lines: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    piece: list[tuple[int, bytes]] = []
    size = 0
    for number, line in lines:
        piece.append((number, line))
        size += len(line)
        if size >= _AHEAD_BYTES:
            break
    return piece


def _look(
    line: bytes, number: int, endpoint: str, limits: InputLimits, found: Inspection, seen: set[str]
) -> BatchFault | None:
    """What is wrong with a line, if something is."""
    if len(line) > limits.line_bytes:
        return BatchFault("line_too_long", f"the line is longer than {limits.line_bytes} bytes", number)
    try:
        request = decode_json(line, BatchLine)
    except InvalidRequest as error:
        return BatchFault("invalid_request", error.message, number)
    except msgspec.ValidationError as error:
        return BatchFault("invalid_request", f"the line is not a request: {error}", number)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return BatchFault("invalid_json_line", f"the line is not valid JSON: {error}", number)
    fault = _wrong_field(request, endpoint)
    if fault is None and request.custom_id in seen:
        fault = BatchFault("duplicate_custom_id", f"{request.custom_id!r} is not unique", None, "custom_id")
    if fault is not None:
        fault.line = number
        return fault
    seen.add(request.custom_id)
    found.models.add(request.body["model"])
    return None


def _wrong_field(request: BatchLine, endpoint: str) -> BatchFault | None:
    if not 0 < len(request.custom_id) <= _CUSTOM_ID_CHARACTERS:
        text = f"'custom_id' must have 1 to {_CUSTOM_ID_CHARACTERS} characters"
        return BatchFault("invalid_custom_id", text, None, "custom_id")
    if request.method != "POST":
        return BatchFault("invalid_method", f"'method' is {_shown(request.method)}; use POST", None, "method")
    if request.url != endpoint:
        text = f"'url' is {_shown(request.url)}; this batch is for {endpoint}"
        return BatchFault("mismatched_url", text, None, "url")
    model = request.body.get("model")
    if not isinstance(model, str) or not model:
        return BatchFault("missing_model", "'body.model' is missing", None, "body.model")
    if len(model) > _SHOWN_CHARACTERS:
        text = f"'body.model' has {len(model)} characters; no model has such a name"
        return BatchFault("invalid_model", text, None, "body.model")
    if request.body.get("stream"):
        return BatchFault("streaming_not_supported", "a batch has no streams", None, "body.stream")
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
