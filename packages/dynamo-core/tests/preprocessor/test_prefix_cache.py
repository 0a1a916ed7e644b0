"""The cache never changes what a prompt's ids are, and stays within its bounds."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from dynamo.errors import InvalidRequest
from dynamo.preprocessor.cuts import cut_pattern
from dynamo.preprocessor.prefix_cache import PIECE_CHARACTERS, PrefixCache
from dynamo.preprocessor.tokenizer import Tokenizer
from dynamo.protocols.llm import pack_token_ids
from dynamo.protocols.routing import PromptHashes

SPECIAL = ["<|start|>", "<|end|>", "[X]"]


def _byte_level() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "th", "the", "Ġt", "Ġthe", "aa", "ĊĊ"])}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "t"), ("Ġt", "h"), ("a", "a"), ("Ċ", "Ċ")]
    vocabulary["Ġth"] = len(vocabulary)
    raw = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return raw


def _metaspace() -> tokenizers.Tokenizer:
    letters = "▁abcdefghijklmnopqrstuvwxyz<|>[]X\n"
    vocabulary = [("<unk>", 0.0), *((letter, -5.0) for letter in letters), ("▁the", -2.0), ("the", -3.0), ("▁▁", -2.5)]
    raw = tokenizers.Tokenizer(models.Unigram(vocabulary, 0, False))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    return raw


def _tokenizer(raw: tokenizers.Tokenizer, *extra: AddedToken) -> Tokenizer:
    raw.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    raw.add_tokens(list(extra))
    return Tokenizer(raw)


def _extra() -> list[AddedToken]:
    """Added tokens that take space of their neighbours, and one that begins as another does."""
    return [
        AddedToken("<|left|>", normalized=False, lstrip=True),
        AddedToken("<|right|>", normalized=False, rstrip=True),
        AddedToken("<|end|>>", normalized=False),
        AddedToken("THINK", normalized=True),
    ]


def _through(cache: PrefixCache, text: str, salt: str | None = None):
    prompt = cache.begin(text, salt)
    missing = prompt.missing_characters
    prompt.encode()
    return cache.end(prompt), missing


def _long(letter: str) -> str:
    return f" the {letter}" * (PIECE_CHARACTERS // 4)


#: Texts that put cuts next to everything that could matter, most of them long enough to be pieces.
_PARTS = st.lists(
    st.one_of(
        st.sampled_from(
            [*SPECIAL, "<|left|>", "<|right|>", "<|end|>>", "<|end|", "|>", "THINK", "  ", "\n\n", "e\u0301"]
        ),
        st.sampled_from([_long("a"), _long("b"), " " * PIECE_CHARACTERS]),
        st.text(max_size=12).filter(lambda text: text.isprintable()),
    ),
    max_size=14,
)


@pytest.mark.parametrize("make", [_byte_level, _metaspace])
@pytest.mark.parametrize("extra", [False, True])
def test_ids_are_those_of_the_tokenizer(make, extra) -> None:
    tokenizer = _tokenizer(make(), *(_extra() if extra else []))
    cache = PrefixCache(tokenizer, 200_000)

    @settings(max_examples=25, deadline=None)
    @given(_PARTS, _PARTS)
    def check(first: list[str], then: list[str]) -> None:
        for text in ("".join(first), "".join(first + then)):
            expected = tokenizer.encode(text)
            for _ in range(2):
                found, _ = _through(cache, text)
                assert found.token_ids.tolist() == expected.tolist()
            packed = pack_token_ids(expected)
            for block_size in (4, 16):
                assert PromptHashes(packed, prefix=found.prefix).of(block_size) == PromptHashes(packed).of(block_size)
        assert cache.bytes <= 200_000

    check()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return _tokenizer(_byte_level())


def _turns(count: int, salt: str = "") -> str:
    return "".join(f"<|start|>{salt}{number}{_long('a')}<|end|>" for number in range(count))


def test_the_next_turn_costs_what_is_new(tokenizer) -> None:
    cache = PrefixCache(tokenizer, 1 << 20)
    first, all_of_it = _through(cache, _turns(5) + "<|start|>")
    second, tail = _through(cache, _turns(6) + "<|start|>")
    assert all_of_it == len(_turns(5) + "<|start|>")
    assert tail <= len(_turns(6)) - len(_turns(4))
    assert np.array_equal(second.token_ids, tokenizer.encode(_turns(6) + "<|start|>"))
    assert len(second.prefix) > len(first.prefix) > 0


def test_other_salts_share_nothing(tokenizer) -> None:
    cache = PrefixCache(tokenizer, 1 << 20)
    text = _turns(4) + "<|start|>"
    _through(cache, text, "one")
    assert _through(cache, text, "one")[1] < len(text) / 2
    assert _through(cache, text, "two")[1] == len(text)
    assert _through(cache, text)[1] == len(text)


def test_the_least_recently_used_go_first_and_leave_nothing_behind(tokenizer) -> None:
    text = _turns(3, "kept") + "<|start|>"
    cache = PrefixCache(tokenizer, 200_000)
    for number in range(40):
        _through(cache, text)
        _through(cache, _turns(3, f"other {number}") + "<|start|>", salt=str(number))
        assert cache.bytes <= 200_000
    assert _through(cache, text)[1] < len(text) / 2
    assert len(cache) < 40
    assert len(cache._roots) <= len(cache)


def test_what_was_dropped_meanwhile_is_not_hung_into_the_air(tokenizer) -> None:
    cache = PrefixCache(tokenizer, 60_000)
    _through(cache, _turns(2) + "<|start|>")
    prompt = cache.begin(_turns(4) + "<|start|>")
    prompt.encode()
    for number in range(20):
        _through(cache, _turns(3, str(number)) + "<|start|>")
    before = len(cache)
    assert np.array_equal(cache.end(prompt).token_ids, tokenizer.encode(_turns(4) + "<|start|>"))
    assert len(cache) == before


def test_many_pieces_that_begin_alike_stay_few(tokenizer) -> None:
    cache = PrefixCache(tokenizer, 1 << 24)
    for number in range(200):
        _through(cache, f"<|start|>{_long('a')}{number}<|end|><|start|>")
    assert len(cache) == 64


def test_without_memory_nothing_is_kept(tokenizer) -> None:
    cache = PrefixCache(tokenizer, 0)
    for _ in range(2):
        found, missing = _through(cache, _turns(3))
        assert missing == len(_turns(3))
        assert np.array_equal(found.token_ids, tokenizer.encode(_turns(3)))
    assert len(cache) == 0


def test_surrogates_are_refused_and_not_kept(tokenizer) -> None:
    cache = PrefixCache(tokenizer, 1 << 20)
    prompt = cache.begin(_turns(2) + "\ud800<|start|>")
    with pytest.raises(InvalidRequest, match="surrogate"):
        prompt.encode()
    assert len(cache) == 0


@pytest.mark.parametrize(
    ("tokens", "cuts"),
    [
        ([AddedToken("<a>", normalized=False)], ["<a>"]),
        ([AddedToken("<a>", normalized=True)], []),
        ([AddedToken("<a>", normalized=False, lstrip=True)], []),
        ([AddedToken("<a>", normalized=False, rstrip=True)], []),
        ([AddedToken("<a> ", normalized=False)], []),
        ([AddedToken("aba", normalized=False)], []),
        ([AddedToken("<a>", normalized=False), AddedToken("<a>>", normalized=False)], ["<a>>"]),
        ([AddedToken("<a>", normalized=False), AddedToken("x<a>", normalized=False)], ["x<a>"]),
        ([AddedToken("<a>", normalized=False), AddedToken("b<", normalized=False)], ["b<"]),
        ([AddedToken("<a>", normalized=False), AddedToken("word", normalized=False, single_word=True)], []),
    ],
)
def test_where_texts_are_cut(tokens, cuts) -> None:
    pattern = cut_pattern(dict(enumerate(tokens)))
    found = [token.content for token in tokens if pattern is not None and pattern.fullmatch(token.content)]
    assert found == cuts
