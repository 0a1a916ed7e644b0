"""Text to token ids and back, over a model's tokenizer.json. The frontend holds one per model and shares it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import tokenizers

from dynamo.errors import ConfigError, InvalidRequest
from dynamo.preprocessor.fast_encoding import Encoder, RawEncoder, fast_encoder
from dynamo.preprocessor.model_files import json_object, read_model_files
from dynamo.preprocessor.token_bytes import TokenTable, byte_decoding

__all__ = ["TokenPiece", "Tokenizer", "in_encode_thread", "special_tokens_of"]

T = TypeVar("T")

_ENCODE_THREADS = 2


class TokenPiece(NamedTuple):
    """One token as logprobs show it."""

    text: str
    """Its own text; U+FFFD where it holds only part of a character."""
    bytes: bytes
    """What it adds to the text, exactly."""


class Tokenizer:
    """A fast tokenizer with what serving needs around it. Immutable; safe to share by threads.

    Construction reads the whole vocabulary (half a second for 150,000 tokens): keep it off the event loop.
    """

    def __init__(
        self,
        raw: tokenizers.Tokenizer,
        *,
        decoder: Mapping[str, Any] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        tokenizer_json: bytes | None = None,
    ) -> None:
        """`tokenizer_json` is what `raw` was read from; with it, texts are encoded faster where that is possible."""
        # A tokenizer.json often carries the truncation of its training run; a prompt must never be cut silently.
        raw.no_truncation()
        raw.no_padding()
        self.raw = raw
        fast = fast_encoder(raw, tokenizer_json) if tokenizer_json is not None else None
        self._encoder: Encoder = fast or RawEncoder(raw)
        self.inline_characters = self._encoder.quick_characters
        """Texts up to this length take less time to encode than other streams would notice."""
        self.special_tokens: dict[str, str] = dict(special_tokens or {})
        """Name to text: ``bos_token``, ``eos_token``, ... as chat templates know them."""
        self.vocab_size: int = raw.get_vocab_size(with_added_tokens=True)
        added = raw.get_added_tokens_decoder()
        self.special_token_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self.byte_decoding = byte_decoding(decoder)
        """None when tokens have no fixed bytes; see `token_bytes`."""
        self.table: TokenTable | None = None
        """Bytes of every id, special ones included; None where tokens have no fixed bytes."""
        self.table_without_special: TokenTable | None = None
        """:attr:`table`, in which special ids add nothing."""
        if self.byte_decoding is not None:
            token_bytes = self.byte_decoding.token_bytes
            vocabulary = raw.get_vocab(with_added_tokens=True)
            self.table = TokenTable({token_id: token_bytes(token) for token, token_id in vocabulary.items()})
            self.table_without_special = self.table.without(self.special_token_ids)

    @classmethod
    def from_directory(cls, path: Path | str) -> Tokenizer:
        """Load ``tokenizer.json`` and, where present, ``tokenizer_config.json`` and ``special_tokens_map.json``.

        Raises:
            ConfigError: tokenizer.json is missing, or a file is unreadable or corrupt.
        """
        files = read_model_files(path, ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"))
        if "tokenizer.json" not in files:
            raise ConfigError(
                f"no tokenizer.json in {path}",
                hint="convert the tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(directory)",
            )
        return cls.from_files(
            files["tokenizer.json"],
            json_object(files, "tokenizer_config.json"),
            json_object(files, "special_tokens_map.json"),
        )

    @classmethod
    def from_files(
        cls,
        tokenizer_json: bytes,
        tokenizer_config: Mapping[str, Any] | None = None,
        special_tokens_map: Mapping[str, Any] | None = None,
    ) -> Tokenizer:
        """Build from file contents; names in `tokenizer_config` win over `special_tokens_map`.

        Raises:
            ConfigError: `tokenizer_json` is corrupt.
        """
        try:
            raw = tokenizers.Tokenizer.from_buffer(tokenizer_json)
            decoder = msgspec.json.decode(tokenizer_json, type=_TokenizerFile).decoder
        except (ValueError, msgspec.MsgspecError) as error:
            raise ConfigError(
                f"tokenizer.json is corrupt: {error}", hint="download the model again, or upgrade `tokenizers`"
            ) from error
        names = special_tokens_of(tokenizer_config or {}, special_tokens_map or {})
        return cls(raw, decoder=decoder, special_tokens=names, tokenizer_json=tokenizer_json)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> npt.NDArray[np.uint32]:
        """Token ids of `text`, shape ``[n_tokens]``. Special tokens written out in the text become their ids.

        Raises:
            InvalidRequest: the text holds a lone surrogate, which no UTF-8 text can.
        """
        _check_unicode(text)
        return self._encoder.encode([text], add_special_tokens=add_special_tokens)[0]

    def encode_pieces(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Token ids of each of `texts`, no special tokens added; one call, for the pieces of one prompt.

        Raises:
            InvalidRequest: a text holds a lone surrogate.
        """
        for text in texts:
            _check_unicode(text)
        return self._encoder.encode(texts, add_special_tokens=False)

    async def encode_async(self, text: str, *, add_special_tokens: bool = False) -> npt.NDArray[np.uint32]:
        """:meth:`encode`, off the event loop when `text` is long."""
        if len(text) <= self.inline_characters:
            return self.encode(text, add_special_tokens=add_special_tokens)
        return await in_encode_thread(lambda: self.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence. Ids outside the vocabulary add nothing.

        Raises:
            InvalidRequest: an id is negative or above 2**32 - 1.
        """
        try:
            # The batch call frees the interpreter lock; `decode` holds up all threads, for 0.15 us an id.
            return self.raw.decode_batch([[int(i) for i in ids]], skip_special_tokens=skip_special_tokens)[0]
        except OverflowError as error:
            raise InvalidRequest("token ids must lie in 0 .. 2**32 - 1") from error

    def token_bytes(self, token_id: int) -> bytes:
        """What this token adds to a text, special tokens included; empty outside the vocabulary."""
        return self.table[token_id] if self.table is not None else self._text_in_context(token_id).encode()

    def token_text(self, token_id: int) -> str:
        """:meth:`token_bytes` as text, with U+FFFD for parts of characters."""
        return self.token_bytes(token_id).decode(errors="replace")

    def pieces(self, token_ids: Sequence[int]) -> list[TokenPiece]:
        """Text and bytes of each id, for logprobs."""
        return [TokenPiece(data.decode(errors="replace"), data) for data in map(self.token_bytes, token_ids)]

    def text_offsets(self, token_ids: Sequence[int], *, start: int = 0) -> list[int]:
        """Where each token begins, in characters from `start`; a token that continues a character begins at it."""
        offsets = []
        position, inside = start, False
        for token_id in token_ids:
            data = self.token_bytes(token_id)
            # UTF-8: every byte but 10xxxxxx begins a character.
            begun = sum(byte & 0xC0 != 0x80 for byte in data)
            continues = inside and bool(data) and data[0] & 0xC0 == 0x80
            offsets.append(position - 1 if continues else position)
            position += begun
            inside = inside or begun > 0
        return offsets

    def _text_in_context(self, token_id: int) -> str:
        # Decoders treat the first token of a text unlike the rest (WordPiece's ##, a leading space): put one before it.
        token = self.raw.id_to_token(token_id)
        decoder = self.raw.decoder
        if token is None or decoder is None:
            return token or ""
        return str(decoder.decode(["x", token])).removeprefix("x")


class _TokenizerFile(msgspec.Struct):
    decoder: dict[str, Any] | None = None


def _check_unicode(text: str) -> None:
    """Refuse surrogates: of them tokenizers make replacement characters or a TypeError, by version."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"text has a lone surrogate at character {error.start}", hint="send valid Unicode text"
        ) from error


async def in_encode_thread(work: Callable[[], T]) -> T:
    """Run `work`, which encodes, beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_encode_pool(), work)


@lru_cache(maxsize=1)
def _encode_pool() -> ThreadPoolExecutor:
    # One pool for all models of the process: long prompts queue for cores, not for tokenizers.
    return ThreadPoolExecutor(_ENCODE_THREADS, thread_name_prefix="dynamo-encode")


def special_tokens_of(tokenizer_config: Mapping[str, Any], special_tokens_map: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token``, ``eos_token``, ... of both files, whose values are strings or ``{"content": ...}``."""
    extra = tokenizer_config.get("extra_special_tokens")
    sources = (special_tokens_map, extra if isinstance(extra, Mapping) else {}, tokenizer_config)
    names = {}
    for name, value in ((name, value) for source in sources for name, value in source.items()):
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            names[name] = text
    return names
