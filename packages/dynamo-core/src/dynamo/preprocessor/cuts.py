"""Where a text may be cut so that its parts can be tokenized one by one. Built once per tokenizer by `PrefixCache`.

Tokenizers look for added tokens first, in the raw text, and treat what lies between them each for itself: normalizing,
pre-tokenizing and merging never see across one. So ``ids(a + T + b) == ids(a) + ids(T + b)`` for an added token ``T``,
provided that every occurrence of ``T`` in any text is taken as that token. That holds when

* it is looked for in the raw text (``normalized`` is false) and takes no space of its neighbours (``lstrip`` and
  ``rstrip`` are false, and it neither begins nor ends with space), and
* no other such token contains it, nor ends with what it begins with, nor does it itself: of tokens that overlap the
  leftmost wins, and of those that begin together the longest.

A token that must be a word of its own (``single_word``) looks at what is beside it: with one of those nothing is cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["cut_pattern"]


def cut_pattern(added_tokens: Mapping[int, Any]) -> re.Pattern[str] | None:
    """A pattern that matches where a part may begin; None: nowhere.

    `added_tokens` are those of `tokenizers.Tokenizer.get_added_tokens_decoder`.
    """
    raw = [token for token in added_tokens.values() if not token.normalized]
    if any(token.single_word for token in added_tokens.values()):
        return None
    contents = {token.content for token in raw}
    safe = [
        token.content
        for token in raw
        if not token.lstrip and not token.rstrip and token.content and _is_always_found(token.content, contents)
    ]
    return re.compile("|".join(map(re.escape, sorted(safe)))) if safe else None


def _is_always_found(content: str, contents: set[str]) -> bool:
    """Whether `content` is that token wherever it occurs."""
    if content != content.strip():
        return False
    if any(content in other for other in contents if other != content):
        return False
    starts = {content[:size] for size in range(1, len(content))}
    return not any(other.endswith(start) for start in starts for other in contents if len(other) > len(start))
