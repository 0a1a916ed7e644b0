"""What each token id adds to the text, as bytes: the table behind streaming decode and logprobs.

Almost every generative model decodes by one of two schemes, byte-level BPE or SentencePiece with byte fallback, and
in both a token stands for a fixed run of bytes, so decoding a stream is a table look-up and an incremental UTF-8
decode. :class:`~dynamo.preprocessor.tokenizer.Tokenizer` builds the table once; decoders of any other shape (WordPiece,
Metaspace, ...) give None here and are decoded over a window of ids in place of it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["ByteDecoding", "TokenTable", "byte_decoding"]

REPLACE_EACH_BYTE = "dynamo-replace-each-byte"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


class ByteDecoding(NamedTuple):
    """How a tokenizer's decoder turns token strings into text."""

    token_bytes: Callable[[str], bytes]
    leading_spaces_stripped: int
    """Spaces that the decoder drops at the very start of a text."""
    utf8_errors: str
    """Name of the codec error handler that places U+FFFD as the decoder does."""


class TokenTable(dict[int, bytes]):
    """Token id to bytes. Ids outside the vocabulary add nothing, as in `tokenizers`."""

    def __missing__(self, token_id: int) -> bytes:
        return b""

    def without(self, token_ids: Iterable[int]) -> TokenTable:
        """A copy in which these ids add nothing."""
        copy = TokenTable(self)
        copy.update(dict.fromkeys(token_ids, b""))
        return copy


def byte_decoding(decoder: Mapping[str, Any] | None) -> ByteDecoding | None:
    """Read the ``decoder`` of a tokenizer.json; None: tokens of this decoder have no fixed bytes."""
    steps = _flatten(decoder)
    kinds = [str(step.get("type")) for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteDecoding(_byte_level, 0, "replace")
    strip = 0
    if kinds[-2:] == ["Fuse", "Strip"] and steps[-1].get("content") == " " and not steps[-1].get("stop"):
        strip = int(steps[-1].get("start", 0))
        steps, kinds = steps[:-1], kinds[:-1]
    if kinds[-1:] == ["Fuse"]:
        steps, kinds = steps[:-1], kinds[:-1]
    fallback = kinds[-1:] == ["ByteFallback"]
    replaced = _replacements(steps[:-1] if fallback else steps)
    if not kinds or replaced is None:
        return None
    return ByteDecoding(_with_fallback(replaced, fallback=fallback), strip, REPLACE_EACH_BYTE)


def _flatten(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", ()) for step in _flatten(inner)]
    return [decoder]


def _replacements(steps: list[Mapping[str, Any]]) -> list[tuple[str, str]] | None:
    """The (old, new) pairs of ``Replace`` steps; None when a step is anything else."""
    pairs = []
    for step in steps:
        pattern = step.get("pattern")
        if step.get("type") != "Replace" or not isinstance(pattern, Mapping) or "String" not in pattern:
            return None
        pairs.append((str(pattern["String"]), str(step.get("content", ""))))
    return pairs


def _byte_level_alphabet() -> dict[int, str]:
    """`str.translate` table from the byte-level alphabet of GPT-2 to the code points 0..255.

    Printable Latin-1 characters stand for themselves; the other 68 bytes are written as U+0100 and up, in order.
    Those 68 are mapped out of Latin-1, so that a token with one of them fails to encode (see `_byte_level`).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {0x100 + index: chr(byte) for index, byte in enumerate(others)}
    table.update(dict.fromkeys(others, "\uffff"))
    return table


_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return token.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        # An added token with a character outside the alphabet (a space, say) is its own text.
        return token.encode()


def _with_fallback(replaced: list[tuple[str, str]], *, fallback: bool) -> Callable[[str], bytes]:
    def token_bytes(token: str) -> bytes:
        match = _BYTE_TOKEN.match(token) if fallback else None
        if match:
            return bytes((int(match[1], 16),))
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return token_bytes


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    # Byte fallback shows one U+FFFD per byte token; Python's "replace" shows one per ill-formed sequence.
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(REPLACE_EACH_BYTE, _replace_each_byte)
