import codecs
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.errors import InvalidRequest
from dynamo.preprocessor import Detokenizer, StopStrings

SCHEMES = ["byte_level", "byte_fallback", "metaspace", "wordpiece"]


def chunked(ids, cuts):
    """`ids` cut at `cuts`, empty chunks included."""
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return [ids[a:b] for a, b in itertools.pairwise(edges)]


def stream(tokenizer, chunks, **options):
    detokenizer = Detokenizer(tokenizer, **options)
    text = "".join(detokenizer.feed(chunk) for chunk in chunks)
    return text + detokenizer.finish(), detokenizer


def byte_token(tokenizer, byte):
    return tokenizer.raw.token_to_id(f"<0x{byte:02X}>")


def level_tokens(tokenizer, data):
    by_bytes = {tokenizer.token_bytes(i): i for t, i in tokenizer.raw.get_vocab().items() if len(t) == 1}
    return [by_bytes[bytes((byte,))] for byte in data]


ids_lists = st.lists(st.integers(0, 420), max_size=24)
cuts_lists = st.lists(st.integers(0, 1000), max_size=6)


@pytest.mark.parametrize("skip", [True, False])
@given(ids=ids_lists, cuts=cuts_lists)
def test_byte_level_stream_equals_decode_for_any_ids_and_any_chunks(bpe, skip, ids, cuts):
    text, _ = stream(bpe, chunked(ids, cuts), skip_special_tokens=skip)
    assert text == bpe.decode(ids, skip_special_tokens=skip)


@given(ids=st.lists(st.integers(0, 280), max_size=24), cuts=cuts_lists)
def test_byte_fallback_stream_does_not_depend_on_chunks(llama, ids, cuts):
    whole, _ = stream(llama, [ids])
    assert stream(llama, chunked(ids, cuts))[0] == whole
    runs = b"".join(llama.table_without_special[i] for i in ids)
    try:
        runs.decode()
    except UnicodeDecodeError:
        return  # the documented exception: `decode` replaces whole runs of byte tokens
    assert whole == llama.decode(ids)


@given(text=st.text(max_size=40), cuts=cuts_lists)
def test_byte_fallback_stream_equals_decode_for_encoded_text(llama, text, cuts):
    ids = llama.encode(text).tolist()
    assert stream(llama, chunked(ids, cuts))[0] == llama.decode(ids)


@pytest.mark.parametrize("scheme", ["metaspace", "wordpiece"])
@given(ids=st.lists(st.integers(0, 10), max_size=24), cuts=cuts_lists)
def test_window_stream_equals_decode(kinds, scheme, ids, cuts):
    tokenizer = kinds[scheme]
    assert stream(tokenizer, chunked(ids, cuts))[0] == tokenizer.decode(ids)


@given(prompt=st.lists(st.integers(3, 271), max_size=12), ids=st.lists(st.integers(3, 271), max_size=12))
def test_prompt_and_output_together_equal_decode(llama, prompt, ids):
    joined = llama.decode(prompt + ids)
    try:
        b"".join(llama.token_bytes(i) for i in prompt + ids).decode()
        before = b"".join(llama.token_bytes(i) for i in prompt)
    except UnicodeDecodeError:
        return
    complete = codecs.getincrementaldecoder("utf-8")().decode(before).removeprefix(" ")
    assert complete + stream(llama, [ids], prompt_tail=prompt)[0] == joined


def test_leading_space_is_dropped_only_at_the_start_of_the_text(llama):
    dog = llama.raw.token_to_id("▁dog")
    assert stream(llama, [[dog, dog]])[0] == "dog dog"
    assert stream(llama, [[dog]], prompt_tail=[dog])[0] == " dog"
    assert stream(llama, [[dog]], prompt_tail=[1])[0] == "dog"  # <s> is no text
    assert stream(llama, [[llama.raw.token_to_id("▁▁")]])[0] == " "
    assert stream(llama, [[1], [byte_token(llama, 0x20)], [dog]])[0] == " dog"


def test_character_begun_in_the_prompt_is_completed(bpe):
    first, second = level_tokens(bpe, "é".encode())
    assert stream(bpe, [[second]], prompt_tail=[first])[0] == "é"


def test_prompt_tail_may_be_an_array(bpe):
    prompt = bpe.encode("Once upon a time")
    assert stream(bpe, [bpe.encode(" there").tolist()], prompt_tail=prompt)[0] == " there"


def test_character_split_over_tokens_comes_whole(bpe):
    detokenizer = Detokenizer(bpe)
    parts = [detokenizer.feed([token_id]) for token_id in level_tokens(bpe, "😀!".encode())]
    assert parts == ["", "", "", "😀", "!"]


def test_incomplete_character_is_flushed_as_replacement(bpe, llama):
    assert stream(bpe, [level_tokens(bpe, b"a\xe2\x82")])[0] == "a\ufffd"
    assert stream(llama, [[byte_token(llama, byte) for byte in b"a\xe2\x82"]])[0] == "a\ufffd\ufffd"


def test_bytes_that_never_form_a_character_do_not_stall(bpe, kinds):
    detokenizer = Detokenizer(bpe)
    (stray,) = level_tokens(bpe, b"\xff")
    assert [detokenizer.feed([stray]) for _ in range(3)] == ["\ufffd"] * 3
    # Over a window of ids too: a tokenizer without byte table, whose text is replacement characters only.
    import tokenizers
    from tokenizers import decoders, models

    from dynamo.preprocessor import Tokenizer

    raw = tokenizers.Tokenizer(models.BPE({"<0xFF>": 0, "a": 1}, [], byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Strip(" ", 0, 0)])
    window = Detokenizer(Tokenizer.from_files(raw.to_str().encode()))
    parts = [window.feed([0]) for _ in range(40)]
    assert any(parts)
    assert "".join(parts) + window.feed([1]) + window.finish() == "\ufffd" * 40 + "a"


def test_complete_characters_before_an_ill_formed_byte_stay(llama):
    detokenizer = Detokenizer(llama)
    ids = [byte_token(llama, byte) for byte in "é".encode() + b"\xff"]
    assert [detokenizer.feed([token_id]) for token_id in ids] == ["", "é", "\ufffd"]


def test_special_tokens_are_shown_on_request(bpe):
    ids = bpe.encode("a<|im end|>b").tolist()
    assert stream(bpe, [ids])[0] == "ab"
    assert stream(bpe, [ids], skip_special_tokens=False)[0] == "a<|im end|>b"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_unknown_ids_and_empty_chunks_are_harmless(kinds, scheme):
    detokenizer = Detokenizer(kinds[scheme])
    assert detokenizer.feed([]) == ""
    assert detokenizer.feed([10**6]) == ""
    assert detokenizer.finish() == ""
    assert detokenizer.completion_tokens == 1


def test_stop_string_over_chunk_borders_cuts_text_and_usage(bpe):
    ids = level_tokens(bpe, b"hello STOP more")
    detokenizer = Detokenizer(bpe, stop_strings=["STOP"])
    parts = [detokenizer.feed([token_id]) for token_id in ids]
    assert "".join(parts) == "hello "
    assert detokenizer.stopped == "STOP"
    assert detokenizer.completion_tokens == len(b"hello STOP")
    assert detokenizer.feed(ids) == ""
    assert detokenizer.finish() == ""
    assert detokenizer.completion_tokens == len(b"hello STOP")


def test_only_what_may_become_a_stop_string_is_held(bpe):
    detokenizer = Detokenizer(bpe, stop_strings=["</end>"])
    assert detokenizer.feed(level_tokens(bpe, b"x</e")) == "x"
    assert detokenizer.feed(level_tokens(bpe, b"m")) == "</em"
    assert detokenizer.feed(level_tokens(bpe, b"<<")) == "<"
    assert detokenizer.finish() == "<"
    assert detokenizer.stopped is None


def test_included_stop_string_ends_the_text(bpe):
    text, detokenizer = stream(bpe, [level_tokens(bpe, b"a.END.b")], stop_strings=["END"], include_stop_string=True)
    assert text == "a.END"
    assert detokenizer.completion_tokens == 5


def test_stop_string_at_the_very_start(bpe):
    text, detokenizer = stream(bpe, [level_tokens(bpe, b"ENDx")], stop_strings=["END"])
    assert (text, detokenizer.stopped, detokenizer.completion_tokens) == ("", "END", 3)


def test_stop_string_completed_by_the_flush(bpe):
    text, detokenizer = stream(bpe, [level_tokens(bpe, b"a\xe2")], stop_strings=["\ufffd"])
    assert (text, detokenizer.stopped, detokenizer.completion_tokens) == ("a", "\ufffd", 2)


def test_stop_strings_do_not_count_within_min_tokens(bpe):
    ids = level_tokens(bpe, b"..x.y")
    for chunks in ([ids], [[token_id] for token_id in ids]):
        text, detokenizer = stream(bpe, chunks, stop_strings=["."], min_tokens=2)
        assert (text, detokenizer.completion_tokens) == ("..x", 4)


def test_one_set_of_stop_strings_serves_many_streams(bpe):
    stops = StopStrings(["b"])
    assert [stream(bpe, [level_tokens(bpe, text)], stop_strings=stops)[0] for text in (b"abc", b"xyz")] == ["a", "xyz"]


def test_bad_stop_strings_are_the_clients_fault(bpe):
    with pytest.raises(InvalidRequest):
        Detokenizer(bpe, stop_strings=[""])


def brute_stop(tokenizer, ids, stops, include):
    """Character by character over the whole text, and id by id for usage."""
    text, _ = stream(tokenizer, [ids])
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            count = 0
            while count < len(ids):
                count += 1
                partial = Detokenizer(tokenizer)
                if len(partial.feed(ids[:count])) >= end:
                    break
            return text[:end] if include else text[: end - len(stop)], stop, count
    return text, None, len(ids)


@settings(max_examples=200)
@given(
    data=st.data(),
    stops=st.lists(st.text("abé ", min_size=1, max_size=4), min_size=1, max_size=4),
    cuts=cuts_lists,
    include=st.booleans(),
)
def test_stop_strings_equal_brute_force_for_any_chunks(bpe, data, stops, cuts, include):
    alphabet = [*level_tokens(bpe, "abé 日".encode()), 0, *bpe.encode(" the").tolist()]
    ids = data.draw(st.lists(st.sampled_from(alphabet), max_size=20))
    text, detokenizer = stream(bpe, chunked(ids, cuts), stop_strings=stops, include_stop_string=include)
    assert (text, detokenizer.stopped, detokenizer.completion_tokens) == brute_stop(bpe, ids, stops, include)
