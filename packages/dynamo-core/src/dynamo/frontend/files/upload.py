"""Reads one ``multipart/form-data`` body to disk, as it comes."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from dynamo.errors import EngineError, InvalidRequest
from dynamo.frontend.database import StorageFull
from dynamo.runtime.http import BodyStream

__all__ = ["Upload", "disk_error", "receive"]

_FIELDS = 16
_FIELD_BYTES = 4096
_FILENAME_CHARACTERS = 255
_HEADER_BYTES = 8192


class Upload:
    """The form of one request: small fields in memory, the part named ``file`` in a file. Parser callbacks."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """None until the file's part begins."""
        self.size = 0
        self.complete = False
        self.pending = bytearray()
        """Of the file, not yet on disk."""
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._in_file = False

    def on_part_begin(self) -> None:
        """A field or the file follows."""
        self._disposition, self._name, self._value, self._in_file = b"", "", bytearray(), False

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of its value."""
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        """A header is complete; only one matters."""
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def on_headers_finished(self) -> None:
        """The content of the part follows."""
        options = parse_options_header(self._disposition)[1]
        self._name = _text(options.get(b"name", b""), "a part's name")
        self._in_file = self._name == "file"
        if not self._in_file:
            return
        if self.filename is not None:
            raise InvalidRequest("the form has more than one 'file'", param="file")
        filename = _text(options.get(b"filename", b""), "'filename'")
        # Some clients send whole paths; it is only ever shown.
        filename = filename.replace("\\", "/").rsplit("/", 1)[-1]
        if not filename or len(filename) > _FILENAME_CHARACTERS or not filename.isprintable():
            raise InvalidRequest(
                f"'file' needs a filename of at most {_FILENAME_CHARACTERS} printable characters", param="file"
            )
        self.filename = filename

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """A piece of the content."""
        if self._in_file:
            self.pending += data[start:end]
            self.size += end - start
        elif len(self._value) + end - start > _FIELD_BYTES:
            raise InvalidRequest(f"'{self._name}' is longer than {_FIELD_BYTES} bytes", param=self._name)
        else:
            self._value += data[start:end]

    def on_part_end(self) -> None:
        """The part is complete."""
        if self._in_file:
            return
        if len(self.fields) >= _FIELDS:
            raise InvalidRequest(f"the form has more than {_FIELDS} fields")
        self.fields[self._name] = _text(bytes(self._value), f"'{self._name}'")

    def on_end(self) -> None:
        """The form is complete."""
        self.complete = True


async def receive(
    content_type: str, body: BodyStream, path: Path, before_writing: Callable[[int], Awaitable[None]] | None = None
) -> Upload:
    """Read the whole form; its file is at `path` then, on disk.

    `before_writing` is called with the size that the file is going to have, and may raise.

    Raises:
        InvalidRequest: it is no form, it is cut short, or a part of it is wrong.
        StorageFull: the disk is full.
        Cancelled: the client went away.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest(
            "send the file as multipart/form-data with a boundary", reason="invalid_content_type", param="file"
        )
    upload = Upload()
    try:
        with path.open("xb", buffering=0) as file:
            await _parse(_parser(boundary, upload), body, upload, file, before_writing)
    except OSError as error:
        raise disk_error(error, "the upload") from error
    if not upload.complete:
        raise InvalidRequest("the form ends before its last boundary", reason="invalid_multipart")
    if upload.filename is None:
        raise InvalidRequest("the form has no 'file'", param="file")
    return upload


def disk_error(error: OSError, what: str) -> EngineError:
    """What clients are told when the disk fails on writing `what`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"there is no room on the disk for {what}")
    return EngineError(f"{what} cannot be written: {error.strerror}")


async def _parse(
    parser: MultipartParser,
    body: BodyStream,
    upload: Upload,
    file: BinaryIO,
    before_writing: Callable[[int], Awaitable[None]] | None,
) -> None:
    while data := await body.read():
        try:
            parser.write(data)
        except MultipartParseError as error:
            raise InvalidRequest(f"the form is malformed: {error}", reason="invalid_multipart") from error
        if upload.pending:
            if before_writing is not None:
                await before_writing(upload.size)
            piece, upload.pending = bytes(upload.pending), bytearray()
            await asyncio.to_thread(_write_all, file, piece)


def _write_all(file: BinaryIO, data: bytes) -> None:
    # Unbuffered files may write less than they are given, on a disk that is nearly full.
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _parser(boundary: bytes, upload: Upload) -> MultipartParser:
    return MultipartParser(
        boundary,
        {
            "on_part_begin": upload.on_part_begin,
            "on_part_data": upload.on_part_data,
            "on_part_end": upload.on_part_end,
            "on_header_field": upload.on_header_field,
            "on_header_value": upload.on_header_value,
            "on_header_end": upload.on_header_end,
            "on_headers_finished": upload.on_headers_finished,
            "on_end": upload.on_end,
        },
        max_header_size=_HEADER_BYTES,
    )


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} is not valid UTF-8", reason="invalid_multipart") from error
