from __future__ import annotations

import pytest

from dynamo.errors import ConfigError
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.llm import DisaggregationMode
from dynamo.reference.engine import ReferenceEngine
from dynamo.reference.settings import parse_flags


def test_flags_are_read():
    settings = parse_flags(
        ["--block-size", "8", "--num-blocks=40", "--no-enable-prefix-caching", "--lora", "a=/x", "--lora", "b=/y"]
    )
    assert (settings.block_size, settings.num_blocks, settings.enable_prefix_caching) == (8, 40, False)
    assert settings.lora == ("a=/x", "b=/y")
    assert settings.threads == 1


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--block-sise", "--block-size"),
        ("--max-num-seq", "--max-num-seqs"),
        ("--no-enable-prefix-cache", "--no-enable-prefix-caching"),
    ],
)
def test_an_unknown_flag_names_the_nearest(flag, meant):
    with pytest.raises(ConfigError, match=flag) as caught:
        parse_flags([flag, "3"])
    assert meant in caught.value.hint


@pytest.mark.parametrize(
    "argv",
    [
        ["--block-size", "0"],
        ["--block-size", "many"],
        ["--block-size"],
        ["--dtype", "int4"],
        ["stray"],
        ["--step-delay-ms", "-1"],
    ],
)
def test_wrong_values_are_config_errors(argv):
    with pytest.raises(ConfigError):
        parse_flags(argv)


def test_an_engine_refuses_its_flags_when_it_is_made():
    with pytest.raises(ConfigError, match="--blocksize"):
        ReferenceEngine(EngineOptions(argv=("--blocksize", "8")))
    with pytest.raises(ConfigError, match="prefill worker"):
        ReferenceEngine(EngineOptions(mode=DisaggregationMode.PREFILL))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-blocks", "2", "--max-model-len", "64"), "KV pool holds 32 tokens, less than one request"),
        (("--max-model-len", "4096"), "more than the model's 128 positions"),
        (("--max-num-batched-tokens", "4"), "less than --max-num-seqs"),
        (("--num-blocks", "99999999999"), "do not fit in memory"),
    ],
)
def test_settings_that_do_not_fit_the_model(load_case, flags, message):
    with pytest.raises(ConfigError, match=message):
        load_case("llama", *flags)


def test_context_length_is_what_the_pool_holds(load_case):
    assert load_case("llama", "--num-blocks", "3").max_model_len == 48
    assert load_case("llama").max_model_len == 128
