"""Counts the tokens of one choice that were spent on reasoning, for ``usage``; fed by `dynamo.frontend.generation`.

Parsers see text, not tokens, and one wake-up may bring many tokens, so which token gave which text is found by length.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo.preprocessor.tokenizer import Tokenizer
from dynamo.protocols.parsing import ParsedDelta

__all__ = ["ReasoningTokens"]

#: More tokens than parsers of reasoning ever hold back: then it is a call that is being read.
_HELD_LIMIT = 8192


class ReasoningTokens:
    """The count.

    The rule: a token counts when some of its text went to the reasoning. One that straddles the end of the reasoning
    (``.</`` of ``.</think>``) counts; marks (``<think>``) show no text and do not. It does not matter how tokens are
    gathered into wake-ups, but where the text of one cannot be found again in what went in (a parser that rewrites it,
    ill-formed bytes) the tokens of that wake-up are divided by characters.

    Args:
        tokenizer: the model's.
        special_tokens: whether the text that parsers see has the special tokens.
    """

    __slots__ = ("_data", "_held", "_skipped", "_tokenizer", "count")

    def __init__(self, tokenizer: Tokenizer, *, special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped: frozenset[int] = frozenset() if special_tokens else tokenizer.special_token_ids
        self._held: list[tuple[int, bool]] = []
        """Tokens whose text the parser holds back: bytes of it, and whether the token counts already."""
        self._data = bytearray()
        """That text."""
        self.count = 0

    def add(self, token_ids: Sequence[int], text: str, parsed: ParsedDelta) -> int:
        """How many more tokens count, now that the parser made `parsed` of `text`, the text of `token_ids`."""
        reasoning = parsed.reasoning
        if not self._held and text and text == reasoning:
            self.count += len(token_ids)
            return len(token_ids)
        shown_elsewhere = parsed.content or parsed.tool_calls
        new = 0
        if reasoning or not shown_elsewhere:
            self._hold(token_ids, text)
        if reasoning:
            new = self._find(reasoning, len(token_ids), len(text))
            self.count += new
        if self._held and (shown_elsewhere or len(self._held) > _HELD_LIMIT):
            # What is still held has been shown there too, or was a mark.
            self._held, self._data = [], bytearray()
        return new

    def _hold(self, token_ids: Sequence[int], text: str) -> None:
        skipped, size_of = self._skipped, self._tokenizer.token_bytes
        data = text.encode()
        sizes = [0 if token_id in skipped else len(size_of(token_id)) for token_id in token_ids]
        # A character whose first bytes came earlier: their token has counted, or not, with what it came with.
        early = len(data) - sum(sizes)
        if early > 0 and not self._held:
            self._held.append((early, True))
        self._held += [(size, False) for size in sizes]
        self._data += data

    def _find(self, reasoning: str, tokens: int, characters: int) -> int:
        """How many held tokens reach into `reasoning` and did not count; those behind it stay held."""
        held, data = self._held, self._data
        begin, end = _span(data, reasoning)
        self._held, self._data = [], data[end:]
        if begin < 0:
            self._data = bytearray()
            return min(tokens, round(tokens * len(reasoning) / max(1, characters)))
        new = position = 0
        for size, counted in held:
            reaches = position < end and position + max(size, 1) > begin
            new += reaches and not counted
            if position + size > end or position >= end:
                self._held.append((position + size - max(position, end), counted or reaches))
            position += size
        return new


def _span(data: bytes | bytearray, reasoning: str) -> tuple[int, int]:
    """Where `reasoning` lies in `data`; it begins at -1 when it is not found."""
    # Some formats put a line break between two pieces of reasoning that the model did not write.
    for wanted in (reasoning.encode(), reasoning.lstrip("\n").encode()):
        begin = data.find(wanted)
        if begin >= 0:
            break
    return begin, begin + len(wanted)
