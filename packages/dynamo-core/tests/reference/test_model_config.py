from __future__ import annotations

import json

import numpy as np
import pytest

from dynamo.errors import ConfigError
from dynamo.reference.model_config import SUPPORTED_ARCHITECTURES, load_model_config
from dynamo.reference.rope import RotaryEmbedding, inverse_frequencies


@pytest.fixture
def write_config(tiny_models, tmp_path):
    """Write config.json of a case with changes; None removes a key."""

    def write(case="llama", generation=None, **changes):
        config = {**tiny_models.CASES[case], **changes}
        config = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return tmp_path

    return write


def test_unsupported_architecture_is_named_with_what_is_supported(write_config):
    with pytest.raises(ConfigError, match="GemmaForCausalLM") as caught:
        load_model_config(write_config(architectures=["GemmaForCausalLM"]))
    for name in SUPPORTED_ARCHITECTURES:
        assert name in caught.value.hint


def test_a_config_without_architectures_names_its_model_type(write_config):
    with pytest.raises(ConfigError, match=r"unknown \(bert\)"):
        load_model_config(write_config(architectures=None, model_type="bert"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "no 'hidden_size'"),
        ({"hidden_size": "wide"}, "not valid"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be positive"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"head_dim": 7}, "head_dim 7 must be even"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor > 0"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_what_cannot_be_computed_is_refused(write_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_model_config(write_config(**changes))


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_malformed_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_model_config(tmp_path)


def test_missing_directory(tmp_path):
    with pytest.raises(ConfigError, match="cannot read") as caught:
        load_model_config(tmp_path / "absent")
    assert "Hugging Face" in caught.value.hint


def test_end_of_sequence_ids_come_from_generation_config_first(write_config):
    assert load_model_config(write_config()).eos_token_ids == (1,)
    assert load_model_config(write_config(generation={"eos_token_id": [7, 8]})).eos_token_ids == (7, 8)
    assert load_model_config(write_config(generation={}, eos_token_id=[4, 5])).eos_token_ids == (4, 5)
    assert load_model_config(write_config(eos_token_id=None)).eos_token_ids == ()


def test_sliding_windows_per_layer(write_config):
    window = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}
    assert load_model_config(write_config("mistral")).windows == (10, 10, 10)
    assert load_model_config(write_config("qwen2", **window)).windows == (None, 12, 12)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert load_model_config(write_config("qwen2", **window, layer_types=kinds)).windows == (12, None, 12)
    unused = {**window, "use_sliding_window": False}
    assert load_model_config(write_config("qwen2", **unused)).windows == (None, None, None)


def test_rotation_keeps_length_and_depends_on_distance_only(write_config):
    config = load_model_config(write_config())
    rope = RotaryEmbedding(config, 64)
    vectors = np.random.default_rng(0).normal(size=(2, 1, config.head_dim)).astype(np.float32)

    def score(query_at: int, key_at: int) -> float:
        rotated = rope.rotate(vectors, rope.angles(np.array([query_at, key_at])))
        np.testing.assert_allclose(np.linalg.norm(rotated, axis=-1), np.linalg.norm(vectors, axis=-1), rtol=1e-5)
        return float(rotated[0, 0] @ rotated[1, 0])

    assert score(9, 4) == pytest.approx(score(40, 35), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-4)


def test_llama3_keeps_short_waves_and_stretches_long_ones(write_config):
    plain, _ = inverse_frequencies(load_model_config(write_config(rope_theta=10_000.0)))
    scaled, factor = inverse_frequencies(load_model_config(write_config("llama-llama3")))
    assert factor == 1.0
    assert scaled[0] == plain[0]
    assert scaled[-1] == pytest.approx(plain[-1] / 8)
