"""`fastokens` is used where it gives the same ids, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import dynamo.reference
from dynamo.errors import InvalidRequest
from dynamo.preprocessor.fast_encoding import RawEncoder, fast_encoder, proof_texts
from dynamo.preprocessor.tokenizer import Tokenizer

DEMO = Path(dynamo.reference.__file__).parent / "demo_model" / "tokenizer.json"
needs_fastokens = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("fastokens") is None,
    reason="fastokens is not installed: pip install 'dynamo-core[fastokens]'",
)


@pytest.fixture(scope="module")
def demo() -> tuple[tokenizers.Tokenizer, bytes]:
    data = DEMO.read_bytes()
    return tokenizers.Tokenizer.from_buffer(data), data


def test_the_proof_covers_what_tokenizers_differ_in(demo) -> None:
    raw, _ = demo
    texts = list(proof_texts(raw))
    everything = "".join(texts)
    assert texts == list(proof_texts(raw))
    for token in raw.get_added_tokens_decoder().values():
        assert token.content in everything
    assert {"\u0301", "\u200d", "\u00a0", "\x00", "😀", "각"} <= set(everything)


@needs_fastokens
def test_it_gives_the_same_ids(demo) -> None:
    encoder = fast_encoder(*demo)
    assert encoder is not None
    texts = ["", "hello <|user|> you", "x " * 20_000, "é\u0301 中文\n\n"]
    long = [*texts, "y " * 40_000]  # spread over threads
    for add_special_tokens, batch in ((False, texts), (True, texts), (False, long), (True, long)):
        expected = RawEncoder(demo[0]).encode(batch, add_special_tokens=add_special_tokens)
        given = encoder.encode(batch, add_special_tokens=add_special_tokens)
        assert all(np.array_equal(one, other) for one, other in zip(given, expected, strict=True))
        for text, ids in zip(batch, expected, strict=True):
            assert np.array_equal(encoder.encode([text], add_special_tokens=add_special_tokens)[0], ids)


@needs_fastokens
def test_another_tokenizer_is_found_out(demo, caplog) -> None:
    raw, data = demo
    other = json.loads(data)
    other["model"]["merges"] = other["model"]["merges"][:-200]
    assert fast_encoder(raw, json.dumps(other).encode()) is None
    assert "differ" in caplog.text


@needs_fastokens
def test_what_it_cannot_read_is_left_to_tokenizers(demo, caplog) -> None:
    caplog.set_level("INFO")
    assert fast_encoder(demo[0], b"{}") is None
    assert "cannot read" in caplog.text


def test_a_tokenizer_refuses_surrogates_whoever_encodes(demo) -> None:
    tokenizer = Tokenizer.from_files(demo[1])
    with pytest.raises(InvalidRequest, match="surrogate at character 1"):
        tokenizer.encode("a\ud800")
    assert len(tokenizer.encode("a" * 100_000)) > 1
