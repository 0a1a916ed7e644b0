from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dynamo.errors import KvTransferError
from dynamo.reference.block_pool import CacheScope
from dynamo.reference.transfer import KvBlockHeader, _decode, _encode, export_blocks, import_blocks

BASE = CacheScope()


@pytest.fixture
def exported(load_case, golden, make_request, run_core):
    """(prompt, continuation, fingerprint, frames of the prompt's blocks) of one engine."""
    arrays = golden("qwen3")
    prompt, tokens = arrays["prompt_2"].tolist(), arrays["tokens_2"].tolist()
    loaded = load_case("qwen3", "--block-size", "8")
    loaded.core.add("a", make_request(prompt, max_tokens=1, ignore_eos=True))
    run_core(loaded.core)
    frames = export_blocks(loaded.core.pool, loaded.core.cache, loaded.fingerprint, prompt, BASE)
    assert loaded.core.pool.used == 0
    return prompt, tokens, loaded.fingerprint, frames


def _import(loaded, frames, adapters=(BASE,)):
    return import_blocks(loaded.core.pool, loaded.core.cache, loaded.fingerprint, frames, adapters)


def test_an_imported_prefix_continues_with_identical_tokens(exported, load_case, make_request, run_core):
    prompt, tokens, _, frames = exported
    assert len(frames) == 6  # 50 tokens are 6 full blocks of 8
    loaded = load_case("qwen3", "--block-size", "8")
    assert _import(loaded, frames) == 6
    assert _import(loaded, frames) == 6  # again: already there
    (stored,) = loaded.core.take_result().events
    assert stored.token_ids == prompt[:48]
    loaded.core.add("a", make_request(prompt, max_tokens=20, ignore_eos=True))
    stream = run_core(loaded.core)["a"]
    assert [token for output in stream for token in output.token_ids] == tokens
    assert stream[-1].usage.cached_tokens == 48
    assert loaded.core.pool.used == 0


def test_the_tokens_really_come_from_the_imported_blocks(exported, load_case, make_request, run_core):
    prompt, tokens, _, frames = exported
    loaded = load_case("qwen3", "--block-size", "8")
    header, data = _decode(frames[0])
    zeroed = _encode(header, bytes(len(data)))
    assert _import(loaded, [zeroed, *frames[1:]]) == 6
    loaded.core.add("a", make_request(prompt, max_tokens=20, ignore_eos=True))
    stream = run_core(loaded.core)["a"]
    assert [token for output in stream for token in output.token_ids] != tokens


def test_a_full_pool_takes_a_prefix_of_the_frames(exported, load_case):
    _, _, _, frames = exported
    loaded = load_case("qwen3", "--block-size", "8", "--num-blocks", "4")
    assert _import(loaded, frames) == 4
    assert (loaded.core.pool.used, loaded.core.pool.evictable) == (0, 4)


@pytest.mark.parametrize("position", [0, 5, 9, 100, -1, -20, -3000])
def test_a_flipped_bit_is_refused(exported, load_case, position):
    _, _, _, frames = exported
    broken = bytearray(frames[1])
    broken[position] ^= 1
    loaded = load_case("qwen3", "--block-size", "8")
    with pytest.raises(KvTransferError, match="corrupt"):
        _import(loaded, [frames[0], bytes(broken)])
    assert loaded.core.pool.cached_names() == set()


@pytest.mark.parametrize("size", [0, 1, 8, 40, 1000])
def test_truncated_frames_are_refused(exported, load_case, size):
    _, _, _, frames = exported
    with pytest.raises(KvTransferError):
        _import(load_case("qwen3", "--block-size", "8"), [frames[0][:size]])


def test_blocks_out_of_order_are_refused(exported, load_case):
    _, _, _, frames = exported
    loaded = load_case("qwen3", "--block-size", "8")
    for wrong in ([frames[1]], [frames[0], frames[2]], [frames[0], frames[0]]):
        with pytest.raises(KvTransferError, match="out of order"):
            _import(loaded, wrong)
    assert loaded.core.pool.available == loaded.core.pool.num_blocks


def _forged(frame, data=None, **changes):
    header, own = _decode(frame)
    return _encode(msgspec.structs.replace(header, **changes), own if data is None else data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "other"}, "other weights"),
        ({"dtype": "float16"}, "float16"),
        ({"shape": (3, 2, 16, 2, 16)}, "this engine needs"),
        ({"lora": "a", "lora_fingerprint": "x"}, "LoRA 'a'"),
        ({"cache_salt": "tenant"}, "does not follow"),
        ({"token_ids": [3] * 8}, "does not follow"),
        ({"token_ids": [3] * 7}, "not as large"),
        ({"token_ids": [2**40] * 8}, "31 bits"),
        ({"data": b"1234"}, "not as large"),
        ({"data": b"12345"}, "not as large"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(exported, load_case, changes, message):
    _, _, _, frames = exported
    with pytest.raises(KvTransferError, match=message):
        _import(load_case("qwen3", "--block-size", "8"), [_forged(frames[0], **changes)])


def test_values_that_are_not_finite_are_refused(exported, load_case):
    _, _, _, frames = exported
    header, data = _decode(frames[0])
    values = np.frombuffer(data, "<f4").copy()
    values[7] = np.nan
    with pytest.raises(KvTransferError, match="NaN"):
        _import(load_case("qwen3", "--block-size", "8"), [_encode(header, values.tobytes())])


def test_other_models_and_block_sizes_are_refused(exported, load_case):
    _, _, _, frames = exported
    with pytest.raises(KvTransferError, match="other weights"):
        _import(load_case("llama", "--block-size", "8"), frames)
    with pytest.raises(KvTransferError, match="this engine needs"):
        _import(load_case("qwen3", "--block-size", "4"), frames)


def test_an_engine_without_prefix_cache_refuses(exported, load_case):
    _, _, _, frames = exported
    with pytest.raises(KvTransferError, match="prefix caching is off"):
        _import(load_case("qwen3", "--block-size", "8", "--no-enable-prefix-caching"), frames)


def test_the_header_is_readable_without_the_engine(exported):
    prompt, _, fingerprint, frames = exported
    header, data = _decode(frames[0])
    assert isinstance(header, KvBlockHeader)
    assert (header.token_ids, header.fingerprint, header.parent) == (prompt[:8], fingerprint, None)
    assert len(data) == 4 * np.prod(header.shape)
