"""A text is called too long only when it is, and before all of it is encoded."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from dynamo.errors import InvalidRequest
from dynamo.preprocessor.overlong import has_more_tokens
from dynamo.preprocessor.tokenizer import Tokenizer

TEXTS = {
    "words": "the dog likes to run in the park. " * 6000,
    "one word": "a" * 200_000,
    "space": " " * 200_000,
    "lines": "\n\t " * 70_000,
    "unknown characters": "\u2603" * 200_000,
    "combining marks": "e\u0301" * 100_000,
    "special tokens": "<s></s>" * 30_000,
    "swallowed space": (" " * 5000 + "<|left|>" + " " * 5000 + "<|right|>") * 20,
}


@pytest.fixture(params=["byte_level", "byte_fallback", "metaspace", "wordpiece"])
def tokenizer(kinds, request):
    """One of its own."""
    return Tokenizer.from_files(kinds[request.param].raw.to_str().encode())


class Counting:
    """An encoder that counts what it is given."""

    quick_characters = 8192

    def __init__(self, encoder) -> None:
        self.encoder = encoder
        self.characters = 0

    def encode(self, texts, *, add_special_tokens):
        self.characters += sum(map(len, texts))
        return self.encoder.encode(texts, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_fits_is_never_refused(text, tokenizer):
    tokenizer.raw.add_tokens(
        [AddedToken("<|left|>", normalized=False, lstrip=True), AddedToken("<|right|>", normalized=False, rstrip=True)]
    )
    count = len(tokenizer.encode(text))
    assert not has_more_tokens(tokenizer, text, count)
    assert not has_more_tokens(tokenizer, text, count + 1)


def test_a_text_far_too_long_is_found_out_by_its_beginning(tokenizer):
    counting = tokenizer._encoder = Counting(tokenizer._encoder)
    assert has_more_tokens(tokenizer, TEXTS["words"] * 20, 4096)
    assert counting.characters < 100_000


def test_nothing_more_is_encoded_once_nobody_waits(tokenizer):
    counting = tokenizer._encoder = Counting(tokenizer._encoder)
    answers = iter([True, False])
    assert not has_more_tokens(tokenizer, TEXTS["words"], 100_000, lambda: next(answers))
    assert 0 < counting.characters < len(TEXTS["words"]) / 2
    assert next(answers, None) is None


def test_broken_unicode_is_refused(tokenizer: Tokenizer):
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        has_more_tokens(tokenizer, "x" * 10 + "\ud800", 4)
