"""Finds out early that a text has more tokens than a model takes, without encoding all of it.

Eight megabytes take a core ten seconds to encode, only to be refused. The frontend asks here before it encodes a text
that is long for its model.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dynamo.preprocessor.tokenizer import Tokenizer

__all__ = ["SUSPICIOUS_CHARACTERS_PER_TOKEN", "has_more_tokens"]

#: Texts of fewer characters for each token of the context are not looked at: most of them fit. English has about 4.
SUSPICIOUS_CHARACTERS_PER_TOKEN = 8
_PIECE_CHARACTERS = 32768
#: A cut in the middle of a word or of a special token makes more tokens of it than there are.
_TOKENS_BY_A_CUT = 16
_SPACE = re.compile(r"\s+")


def has_more_tokens(tokenizer: Tokenizer, text: str, limit: int, wanted: Callable[[], bool] = lambda: True) -> bool:
    """Whether `text` certainly has more than `limit` tokens; takes as long as encoding about that many.

    Ends early, with no answer that counts, when `wanted` says that nobody waits for one any more.

    The text is cut anywhere and its pieces counted until they are well above the limit: what cuts add is allowed for,
    and space is counted as next to nothing where special tokens swallow what is beside them.

    Raises:
        InvalidRequest: the text holds a lone surrogate.
    """
    swallows_space = any(token.lstrip or token.rstrip for token in tokenizer.raw.get_added_tokens_decoder().values())
    most, count = limit + limit // 10, 0
    for start in range(0, len(text), _PIECE_CHARACTERS):
        piece = text[start : start + _PIECE_CHARACTERS]
        count += len(tokenizer.encode(_SPACE.sub(" ", piece) if swallows_space else piece))
        most += _TOKENS_BY_A_CUT
        if count > most:
            return True
        if not wanted():
            break
    return False
