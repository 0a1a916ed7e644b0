"""Token ids of one stream to text that is safe to send, with stop strings. One per choice, fed by the frontend.

`tokenizers.decoders.DecodeStream` is not used: it holds text back without bound while bytes stay ill-formed, decodes
all of them again at each step, raises "Invalid prefix encountered" where a decoder rewrites earlier text, cannot be
flushed, and costs twice as much per token as the byte table.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import Any, Protocol

import tokenizers

from dynamo.preprocessor.stop_strings import StopMatch, StopStrings
from dynamo.preprocessor.token_bytes import ByteDecoding, TokenTable
from dynamo.preprocessor.tokenizer import Tokenizer

__all__ = ["Detokenizer"]

#: Ids of the prompt that can still affect what follows: the longest character has four byte tokens.
_PROMPT_TAIL_TOKENS = 8
_NO_STOPS = StopStrings(())
#: A window decoder waits this many ids for a character to become complete, then shows U+FFFD.
_WINDOW_WAIT_TOKENS = 8


class Detokenizer:
    """Incremental text of one stream.

    The text does not depend on how the ids are cut into chunks. It equals decoding prompt and output together and
    taking the prompt's text away, with one exception: where byte-fallback tokens form ill-formed UTF-8, characters
    that were complete stay as they are, while decoding as a whole would replace the entire run of byte tokens.

    Args:
        tokenizer: shared by all streams of the model.
        stop_strings: texts that end the stream; see :class:`StopStrings` for which of several wins.
        include_stop_string: keep the stop string in the text.
        skip_special_tokens: leave special tokens out of the text.
        prompt_tail: the prompt's ids, or its last few: they decide whether the first token keeps its leading space,
            and may hold the beginning of a character.
        min_tokens: stop strings that complete within so many tokens are ordinary text.

    Raises:
        InvalidRequest: the stop strings are empty, too many or too long.
    """

    __slots__ = ("_held", "_include", "_stops", "_stream", "_unscanned", "completion_tokens", "stopped")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop_strings: Sequence[str] | StopStrings = (),
        include_stop_string: bool = False,
        skip_special_tokens: bool = True,
        prompt_tail: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self._stream = _text_stream(tokenizer, skip_special_tokens)
        if len(prompt_tail):
            self._stream.push([int(i) for i in prompt_tail[-_PROMPT_TAIL_TOKENS:]])
        if not isinstance(stop_strings, StopStrings):
            stop_strings = StopStrings(stop_strings) if stop_strings else _NO_STOPS
        self._stops = stop_strings if stop_strings.stops else None
        self._include = include_stop_string
        self._unscanned = min_tokens
        self._held = ""
        self.stopped: str | None = None
        """The stop string that ended the stream."""
        self.completion_tokens = 0
        """Ids that count as output: up to and including the one that completed the stop string."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these ids make safe to send; may be empty. After a stop string nothing comes any more."""
        if self._stops is None:
            self.completion_tokens += len(token_ids)
            return self._stream.push(token_ids)
        if self.stopped is not None:
            return ""
        text = ""
        if self._unscanned:
            free, token_ids = token_ids[: self._unscanned], token_ids[self._unscanned :]
            self._unscanned -= len(free)
            self.completion_tokens += len(free)
            text = self._stream.push(free)
        return text + self._feed_scanned(self._stops, token_ids) if len(token_ids) else text

    def finish(self) -> str:
        """End the stream: text that was held back, and U+FFFD for a character that never became complete."""
        if self.stopped is not None:
            return ""
        text, self._held = self._held + self._stream.flush(), ""
        match = self._stops.search(text) if self._stops is not None else None
        return text if match is None else self._stop_at(match, text)

    def _feed_scanned(self, stops: StopStrings, token_ids: Sequence[int]) -> str:
        before = self._stream.state
        text = self._held + self._stream.push(token_ids)
        match = stops.search(text)
        if match is None:
            self.completion_tokens += len(token_ids)
            safe = len(text) - stops.held(text)
            self._held = text[safe:]
            return text[:safe]
        self._stream.state = before
        self.completion_tokens += self._tokens_until(match.end - len(self._held), token_ids)
        return self._stop_at(match, text)

    def _tokens_until(self, characters: int, token_ids: Sequence[int]) -> int:
        """How many of `token_ids` it takes to make so many characters of text."""
        for count, token_id in enumerate(token_ids, 1):
            characters -= len(self._stream.push((token_id,)))
            if characters <= 0:
                return count
        return len(token_ids)

    def _stop_at(self, match: StopMatch, text: str) -> str:
        self.stopped, self._held = match.stop, ""
        return text[: match.end if self._include else match.start]


class _TextStream(Protocol):
    state: tuple[Any, ...]
    """What `push` depends on; may be saved and put back."""

    def push(self, token_ids: Sequence[int], /) -> str:
        """Text that became certain."""
        ...

    def flush(self) -> str:
        """What is left."""
        ...


class _ByteStream:
    """Decodes by the byte table: bytes that end inside a character wait for the next token."""

    __slots__ = ("_errors", "_table", "state")

    def __init__(self, table: TokenTable, decoding: ByteDecoding) -> None:
        self._table = table
        self._errors = decoding.utf8_errors
        self.state: tuple[bytes, int] = (b"", decoding.leading_spaces_stripped)

    def push(self, token_ids: Sequence[int], /) -> str:
        table = self._table
        pending, strip = self.state
        data = pending + b"".join([table[token_id] for token_id in token_ids])
        text, used = utf_8_decode(data, self._errors, False)
        if strip and text:
            kept = text.lstrip(" ")
            spaces = min(strip, len(text) - len(kept))
            text, strip = text[spaces:], 0 if kept else strip - spaces
        self.state = (data[used:], strip)
        return text

    def flush(self) -> str:
        pending, strip = self.state
        self.state = (b"", strip)
        return utf_8_decode(pending, self._errors, True)[0]


class _WindowStream:
    """Decodes any tokenizer: the last ids that made text are decoded again with each new one, for context."""

    __slots__ = ("_raw", "_skipped", "state")

    def __init__(self, raw: tokenizers.Tokenizer, skipped: frozenset[int]) -> None:
        self._raw = raw
        self._skipped = skipped
        #: Ids of the window, how many of them have been shown, and the text of those.
        self.state: tuple[tuple[int, ...], int, str] = ((), 0, "")

    def push(self, token_ids: Sequence[int], /) -> str:
        return "".join([self._push_one(token_id) for token_id in token_ids if token_id not in self._skipped])

    def _push_one(self, token_id: int) -> str:
        window, shown, prefix = self.state
        window = (*window, token_id)
        text = self._decode(window)
        waiting = len(window) - shown < _WINDOW_WAIT_TOKENS
        if waiting and (len(text) <= len(prefix) or text.endswith("\ufffd")):
            self.state = (window, shown, prefix)
            return ""
        fresh = window[shown:]
        self.state = (fresh, len(fresh), self._decode(fresh))
        return text.removeprefix(prefix) if text.startswith(prefix) else self._decode(fresh)

    def flush(self) -> str:
        window, _, prefix = self.state
        text = self._decode(window)
        self.state = ((), 0, "")
        return text[len(prefix) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._raw.decode(list(ids), skip_special_tokens=False)


def _text_stream(tokenizer: Tokenizer, skip_special_tokens: bool) -> _TextStream:
    table = tokenizer.table_without_special if skip_special_tokens else tokenizer.table
    if table is not None and tokenizer.byte_decoding is not None:
        return _ByteStream(table, tokenizer.byte_decoding)
    return _WindowStream(tokenizer.raw, tokenizer.special_token_ids if skip_special_tokens else frozenset())
