"""Token ids of prompts whose beginning was seen before: the next turn of a long chat costs its new messages.

A prompt is cut into pieces where that cannot change its ids (`dynamo.preprocessor.cuts`), and a tree remembers the ids
of each piece in the place where it stood. The frontend holds one cache per model.

A piece is found by comparing its text, so what comes out is what the tokenizer would give; nothing but text and ids is
kept. Whoever can measure how long a prompt takes could tell that somebody sent its beginning before, as with any prefix
cache; prompts with another ``cache_salt`` share nothing.
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dynamo.preprocessor.cuts import cut_pattern
from dynamo.preprocessor.tokenizer import Tokenizer
from dynamo.protocols.routing import PrefixHashes

__all__ = ["PrefixCache", "TokenizedPrompt", "Tokenizing"]

Ids: TypeAlias = npt.NDArray[np.uint32]
#: What may follow at one point of a prompt: the beginning of each piece's text to the pieces.
_Place: TypeAlias = "dict[str, list[_Piece]]"

#: A piece ends at the first cut behind so many characters; its beginning of that length is what it is looked up by.
PIECE_CHARACTERS = 1024
#: Pieces that are kept in one place with the same beginning.
_ALIKE = 64
#: The objects of a piece, and the text that it is looked up by.
_PIECE_BYTES = 1800
#: Ids as uint32, and their share of a block's hash, at 16 tokens a block.
_BYTES_PER_TOKEN = 5


class TokenizedPrompt(NamedTuple):
    """Ids of a prompt, shape ``[n_tokens]``, and what is known of the blocks of its beginning."""

    token_ids: Ids
    prefix: tuple[PrefixHashes, ...] = ()


class _Piece:
    """One piece behind all that lead to it."""

    __slots__ = ("hashes", "ids", "next", "place", "salt", "size", "text")

    def __init__(self, text: str, ids: Ids, end: int, place: _Place, salt: str | None) -> None:
        self.text = text
        self.ids = ids
        self.hashes = PrefixHashes(end)
        self.place = place
        """Where it is kept."""
        self.salt = salt
        self.next: _Place = {}
        self.size = sys.getsizeof(text) + _BYTES_PER_TOKEN * len(ids) + len(salt or "") + _PIECE_BYTES
        """About how many bytes it takes."""


class Tokenizing:
    """One prompt on its way: made by `PrefixCache.begin`, then :meth:`encode` on any thread, then `PrefixCache.end`."""

    __slots__ = ("_cuts", "_rest", "_tokenizer", "ids", "known", "salt", "texts")

    def __init__(
        self, tokenizer: Tokenizer, salt: str | None, known: list[_Piece], rest: str, cuts: re.Pattern[str] | None
    ) -> None:
        """`rest` is what is not known; without `cuts` it is one text."""
        self._tokenizer = tokenizer
        self._rest = rest
        self._cuts = cuts
        self.salt = salt
        self.known = known
        self.texts: list[str] = []
        """What is not known: pieces, and the end of the prompt. Made by :meth:`encode`."""
        self.ids: list[Ids] = []

    @property
    def missing_characters(self) -> int:
        """How much is to be encoded."""
        return len(self._rest)

    def encode(self) -> None:
        """Encode what is not known.

        Raises:
            InvalidRequest: the text holds a lone surrogate.
        """
        self.texts = [self._rest] if self._cuts is None else list(_pieces(self._cuts, self._rest))
        self.ids = self._tokenizer.encode_pieces(self.texts)


class PrefixCache:
    """Pieces of prompts of one tokenizer, the least recently used of which go first. Belongs to one thread."""

    def __init__(self, tokenizer: Tokenizer, limit_bytes: int) -> None:
        """`limit_bytes` is about what text, ids and block hashes may take; 0 remembers nothing."""
        self._tokenizer = tokenizer
        self._cuts = cut_pattern(tokenizer.raw.get_added_tokens_decoder()) if limit_bytes > 0 else None
        self._limit = limit_bytes
        self._roots: dict[str | None, _Place] = {}
        # Pieces, least recently used first. Whoever is used is used after what lies behind it: leaves come first.
        self._used: OrderedDict[_Piece, None] = OrderedDict()
        self.bytes = 0
        """What is kept, by the estimate that the limit is for."""

    def __len__(self) -> int:
        """Pieces that are kept."""
        return len(self._used)

    def begin(self, text: str, salt: str | None = None) -> Tokenizing:
        """Look up how `text` begins; prompts with another `salt` are not looked at."""
        if self._cuts is None or len(text) <= PIECE_CHARACTERS:
            return Tokenizing(self._tokenizer, salt, [], text, None)
        known, position = self._find(text, salt)
        return Tokenizing(self._tokenizer, salt, known, text[position:], self._cuts)

    def end(self, prompt: Tokenizing) -> TokenizedPrompt:
        """The ids of an encoded prompt, whose pieces are kept from now on."""
        *new, _ = prompt.ids
        path = list(prompt.known)
        arrays = [piece.ids for piece in path] + prompt.ids
        # What was found may have been dropped while the rest was encoded: then nothing can be hung behind it.
        if new and all(piece in self._used for piece in path):
            for text, ids in zip(prompt.texts, new, strict=False):
                path.append(self._add(path, text, ids, prompt.salt))
        for piece in reversed(path):
            if piece in self._used:
                self._used.move_to_end(piece)
        # A view of packed bytes, as `pack_token_ids` likes them.
        token_ids = (
            arrays[0] if len(arrays) == 1 else np.frombuffer(b"".join([ids.data for ids in arrays]), dtype=np.uint32)
        )
        prefix = tuple(piece.hashes for piece in path)
        while self.bytes > self._limit:
            self._drop(next(iter(self._used)))
        return TokenizedPrompt(token_ids, prefix)

    def _find(self, text: str, salt: str | None) -> tuple[list[_Piece], int]:
        """The pieces that `text` begins with, and where they end."""
        assert self._cuts is not None
        known: list[_Piece] = []
        position = 0
        following = self._roots.get(salt, {})
        while following:
            for piece in following.get(text[position : position + PIECE_CHARACTERS], ()):
                end = position + len(piece.text)
                if text.startswith(piece.text, position) and self._cuts.match(text, end):
                    known.append(piece)
                    position, following = end, piece.next
                    break
            else:
                break
        return known, position

    def _add(self, path: list[_Piece], text: str, ids: Ids, salt: str | None) -> _Piece:
        """The piece `text` behind `path`."""
        place = path[-1].next if path else self._roots.setdefault(salt, {})
        alike = place.setdefault(text[:PIECE_CHARACTERS], [])
        for known in alike:
            if known.text == text:
                return known
        if len(alike) >= _ALIKE:
            self._drop(alike[-1])
        before = path[-1].hashes.end if path else 0
        # A copy: `ids` may be a view of all that was encoded together.
        piece = _Piece(text, ids.copy(), before + len(ids), place, salt)
        place.setdefault(text[:PIECE_CHARACTERS], []).insert(0, piece)
        self._used[piece] = None
        self.bytes += piece.size
        return piece

    def _drop(self, piece: _Piece) -> None:
        """Forget `piece`; what lies behind it cannot be found any more, and goes in its turn."""
        head, place = piece.text[:PIECE_CHARACTERS], piece.place
        place[head].remove(piece)
        if not place[head]:
            del place[head]
        if not place and self._roots.get(piece.salt) is place:
            del self._roots[piece.salt]
        del self._used[piece]
        self.bytes -= piece.size


def _pieces(cuts: re.Pattern[str], text: str) -> Iterator[str]:
    """Cut `text`; the last part is what no piece can be made of."""
    start = 0
    for match in cuts.finditer(text, PIECE_CHARACTERS):
        if match.start() - start >= PIECE_CHARACTERS:
            yield text[start : match.start()]
            start = match.start()
    yield text[start:]
