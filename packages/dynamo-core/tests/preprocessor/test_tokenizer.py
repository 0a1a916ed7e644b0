import asyncio
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import ConfigError, InvalidRequest
from dynamo.preprocessor import Tokenizer, TokenPiece
from dynamo.preprocessor.fast_encoding import RawEncoder


def byte_ids(tokenizer, data):
    """Ids of single bytes, whatever the scheme writes them as."""
    by_bytes = {}
    for token, token_id in tokenizer.raw.get_vocab().items():
        piece = tokenizer.token_bytes(token_id)
        if len(piece) == 1 and (len(token) == 1 or token.startswith("<0x")):
            by_bytes.setdefault(piece, token_id)
    return [by_bytes[bytes((byte,))] for byte in data]


def test_encode_gives_uint32_and_decode_gives_the_text_back(bpe):
    ids = bpe.encode("Once upon a café 😀")
    assert ids.dtype == np.uint32
    assert ids.ndim == 1
    assert bpe.decode(ids) == "Once upon a café 😀"


def test_empty_text_has_no_tokens(bpe):
    assert bpe.encode("").shape == (0,)
    assert bpe.decode([]) == ""


def test_special_tokens_in_text_become_their_ids_and_are_skipped_when_decoding(bpe):
    ids = bpe.encode("<s>the dog<|im end|>")
    assert ids[0] == bpe.raw.token_to_id("<s>")
    assert bpe.decode(ids) == "the dog"
    assert bpe.decode(ids, skip_special_tokens=False) == "<s>the dog<|im end|>"


def test_added_special_tokens_only_on_request(llama):
    assert llama.encode("the", add_special_tokens=True)[0] == 1
    assert 1 not in llama.encode("the")


def test_truncation_of_the_training_run_is_dropped(bpe):
    raw = json.loads(bpe.raw.to_str())
    raw["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<s>",
    }
    loaded = Tokenizer.from_files(json.dumps(raw).encode())
    text = "Once upon a time there was a small dog"
    assert loaded.encode(text).tolist() == bpe.encode(text).tolist()


def test_lone_surrogate_is_the_clients_fault_and_located(bpe):
    with pytest.raises(InvalidRequest, match="lone surrogate at character 2"):
        bpe.encode("ab\ud800c")


@pytest.mark.parametrize("bad", [-1, 2**32])
def test_decode_refuses_ids_out_of_range(bpe, bad):
    with pytest.raises(InvalidRequest, match="token ids"):
        bpe.decode([bad])


def test_unknown_ids_add_nothing(kinds):
    for tokenizer in kinds.values():
        assert tokenizer.decode([10**6]) == ""
        assert tokenizer.token_text(10**6) == ""
        assert tokenizer.token_bytes(10**6) == b""


async def test_encode_async_gives_the_same_ids_inline_and_on_a_thread(bpe):
    short, long = "the dog", "the dog runs. " * (RawEncoder.quick_characters // 10)
    assert len(long) > RawEncoder.quick_characters
    many = await asyncio.gather(*(bpe.encode_async(text) for text in (short, long, long)))
    assert [ids.tolist() for ids in many] == [bpe.encode(text).tolist() for text in (short, long, long)]


async def test_encode_async_raises_from_the_thread(bpe):
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        await bpe.encode_async("\udfff" + "x" * RawEncoder.quick_characters)


@given(text=st.text(max_size=60))
def test_token_bytes_concatenate_to_the_text(bpe, text):
    assert b"".join(bpe.token_bytes(i) for i in bpe.encode(text)) == text.encode()


@given(ids=st.lists(st.integers(0, 402), max_size=20))
def test_byte_table_equals_decode_for_any_ids(bpe, ids):
    data = b"".join(bpe.token_bytes(i) for i in ids)
    assert data.decode(errors="replace") == bpe.decode(ids, skip_special_tokens=False)


def test_parts_of_a_character(bpe, llama):
    for tokenizer in (bpe, llama):
        pieces = tokenizer.pieces(byte_ids(tokenizer, "é".encode()))
        assert pieces == [TokenPiece("\ufffd", b"\xc3"), TokenPiece("\ufffd", b"\xa9")]


def test_piece_of_a_sentencepiece_token_keeps_its_space(llama):
    assert llama.token_text(llama.raw.token_to_id("▁dog")) == " dog"
    assert llama.token_bytes(llama.raw.token_to_id("<0x0A>")) == b"\n"


def test_pieces_of_schemes_without_a_byte_table(kinds):
    wordpiece, metaspace = kinds["wordpiece"], kinds["metaspace"]
    assert wordpiece.table is None
    assert wordpiece.token_text(wordpiece.raw.token_to_id("##s")) == "s"
    assert wordpiece.token_text(wordpiece.raw.token_to_id("dog")) == " dog"
    assert metaspace.token_text(metaspace.raw.token_to_id("▁dog")) == " dog"


def test_special_and_added_tokens_show_their_content(bpe):
    assert bpe.token_text(bpe.raw.token_to_id("</s>")) == "</s>"
    assert bpe.token_bytes(bpe.raw.token_to_id("<tool call>")) == b"<tool call>"
    assert bpe.special_token_ids == {0, 1, bpe.raw.token_to_id("<|im end|>")}


def test_text_offsets_count_characters(bpe):
    ids = [*bpe.encode("the"), *byte_ids(bpe, "é😀x".encode())]
    lead = len(bpe.encode("the"))
    offsets = bpe.text_offsets(ids, start=10)
    assert offsets[lead:] == [13, 13, 14, 14, 14, 14, 15]
    assert offsets[0] == 10


def test_text_offsets_match_the_text(bpe):
    text = "Once upon a time, naïve café"
    ids = bpe.encode(text)
    for offset, token_id in zip(bpe.text_offsets(ids), ids, strict=True):
        piece = bpe.token_text(token_id)
        if "\ufffd" not in piece:
            assert text.startswith(piece, offset)


def test_special_token_names_from_strings_and_objects(model_directory):
    (model_directory / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "overridden", "pad_token": {"content": "<pad>"}, "additional_special_tokens": ["x"]})
    )
    tokenizer = Tokenizer.from_directory(model_directory)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def test_vocabulary_counts_added_tokens(bpe):
    assert bpe.vocab_size == len(bpe.raw.get_vocab(with_added_tokens=True))


def test_missing_directory_and_missing_file_are_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        Tokenizer.from_directory(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no tokenizer\.json in"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model": {"type": "x"}}'])
def test_corrupt_tokenizer_json_is_named(model_directory, content):
    (model_directory / "tokenizer.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is corrupt"):
        Tokenizer.from_directory(model_directory)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_corrupt_tokenizer_config_is_named(model_directory, content):
    (model_directory / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json"):
        Tokenizer.from_directory(model_directory)


def test_unreadable_file_is_named(model_directory):
    (model_directory / "tokenizer.json").unlink()
    (model_directory / "tokenizer.json").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*tokenizer\.json"):
        Tokenizer.from_directory(model_directory)
