import pytest

from dynamo.preprocessor.token_bytes import TokenTable, byte_decoding

REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def sequence(*steps):
    return {"type": "Sequence", "decoders": list(steps)}


def test_byte_level_maps_the_alphabet_and_leaves_other_tokens_as_text():
    decoding = byte_decoding({"type": "ByteLevel"})
    assert decoding.token_bytes("ĠHello") == b" Hello"
    assert decoding.token_bytes("Ã©") == "é".encode()
    assert decoding.token_bytes("Ġa b") == "Ġa b".encode()
    assert decoding.token_bytes("日") == "日".encode()


def test_byte_level_alphabet_covers_every_byte():
    from tokenizers.pre_tokenizers import ByteLevel

    token_bytes = byte_decoding({"type": "ByteLevel"}).token_bytes
    assert sorted(token_bytes(character) for character in ByteLevel.alphabet()) == [bytes((b,)) for b in range(256)]


def test_sentencepiece_shapes():
    llama = byte_decoding(sequence(REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP))
    assert llama.leading_spaces_stripped == 1
    assert llama.token_bytes("<0xE2>") == b"\xe2"
    assert llama.token_bytes("▁a▁b") == b" a b"
    gemma = byte_decoding(sequence(REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}))
    assert gemma.leading_spaces_stripped == 0
    without = byte_decoding(sequence(REPLACE, {"type": "Fuse"}))
    assert without.token_bytes("<0xE2>") == b"<0xE2>"
    nested = byte_decoding(sequence(sequence({"type": "ByteLevel"})))
    assert nested.token_bytes("Ġ") == b" "


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Metaspace", "replacement": "▁"},
        sequence(),
        sequence(REPLACE, STRIP),
        sequence(REPLACE, {"type": "Fuse"}, {**STRIP, "stop": 1}),
        sequence({"type": "ByteFallback"}, REPLACE),
        sequence({**REPLACE, "pattern": {"Regex": "a+"}}, {"type": "Fuse"}),
    ],
)
def test_shapes_without_fixed_bytes(decoder):
    assert byte_decoding(decoder) is None


def test_table_without_ids():
    table = TokenTable({1: b"a", 2: b"b"})
    assert table.without([2])[2] == b""
    assert table[2] == b"b"
    assert table[-1] == b""
    assert len(table) == 2
