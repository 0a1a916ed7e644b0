from __future__ import annotations

import json
import re

import numpy as np
import pytest

from dynamo.errors import ConfigError
from dynamo.reference.model_config import load_model_config
from dynamo.reference.safetensors import TensorFile, open_tensors
from dynamo.reference.weights import load_weights


def _write(path, header, data=b"", *, length=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data)
    return path


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 0), ("F16", 1e-3), ("BF16", 1e-2)])
def test_float_types_are_read_as_float32(tiny_models, tmp_path, dtype, tolerance):
    values = tiny_models.uniform("x", (5, 7), 1.0)
    tiny_models.write_safetensors(tmp_path / "t.safetensors", {"x": values}, dtype)
    read = TensorFile(tmp_path / "t.safetensors").read("x")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, values, atol=tolerance)


def test_shards_are_found_through_the_index(tiny_models, tmp_path):
    directory = tiny_models.write_model(tmp_path / "sharded", "qwen3", shards=3)
    whole = tiny_models.write_model(tmp_path / "whole", "qwen3")
    config = load_model_config(whole)
    assert load_weights(directory, config).fingerprint == load_weights(whole, config).fingerprint


LIES = {
    "empty file": lambda path: path.write_bytes(b""),
    "no header": lambda path: path.write_bytes(b"abc"),
    "header longer than the file": lambda path: _write(path, {}, length=10_000),
    "header longer than any": lambda path: _write(path, {}, length=2**63),
    "header is not JSON": lambda path: _write(path, b"{nope"),
    "header is a list": lambda path: _write(path, []),
    "entry without offsets": lambda path: _write(path, {"x": {"dtype": "F32", "shape": [1]}}),
    "data missing": lambda path: _write(path, {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"1234"),
    "negative offset": lambda path: _write(
        path, {"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"1234"
    ),
    "offsets reversed": lambda path: _write(
        path, {"x": {"dtype": "F32", "shape": [0], "data_offsets": [4, 0]}}, b"1234"
    ),
    "shape larger than data": lambda path: _write(
        path, {"x": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 4]}}, b"1234"
    ),
    "negative shape": lambda path: _write(
        path, {"x": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, b"1234"
    ),
    "deeply nested": lambda path: _write(path, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
}


@pytest.mark.parametrize("lie", LIES)
def test_truncated_and_lying_files_are_refused(lie, tmp_path):
    path = tmp_path / "model.safetensors"
    LIES[lie](path)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        TensorFile(path).read("x")


def test_every_truncation_of_a_good_file_is_refused(tiny_models, tmp_path):
    path = tmp_path / "t.safetensors"
    tiny_models.write_safetensors(path, {"x": tiny_models.uniform("x", (3, 4), 1.0)})
    good = path.read_bytes()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(ConfigError):
            TensorFile(path).read("x")


def test_quantized_types_are_named(tmp_path):
    path = _write(tmp_path / "q.safetensors", {"x": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}, b"1234")
    with pytest.raises(ConfigError, match="type I8") as caught:
        TensorFile(path).read("x")
    assert "BF16" in caught.value.hint


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(tiny_models, tmp_path, value):
    directory = tiny_models.write_model(tmp_path / "m", "llama")
    weights = tiny_models.tensors("llama")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    tiny_models.write_safetensors(directory / "model.safetensors", weights)
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.weight.*NaN or infinite"):
        load_weights(directory, load_model_config(directory))


def test_directory_without_weights(tmp_path):
    with pytest.raises(ConfigError, match="holds neither"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not a valid weight index"),
        ('{"weight_map": {"x": "../model.safetensors"}}', "outside its directory"),
        ('{"weight_map": {"x": "missing.safetensors"}}', "cannot read"),
        ('{"weight_map": {"absent": "shard.safetensors"}}', "it does not"),
        ("{}", "not a valid weight index"),
    ],
)
def test_wrong_indexes_are_refused(tiny_models, tmp_path, index, message):
    tiny_models.write_safetensors(tmp_path / "shard.safetensors", {"x": tiny_models.uniform("x", (2,), 1.0)})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigError, match=message):
        open_tensors(tmp_path)


def test_missing_and_misshapen_tensors_are_named(tiny_models, tmp_path):
    directory = tiny_models.write_model(tmp_path / "m", "llama")
    config = load_model_config(directory)
    weights = tiny_models.tensors("llama")
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1]
    tiny_models.write_safetensors(directory / "model.safetensors", weights)
    with pytest.raises(ConfigError, match=r"'model\.norm\.weight'.*shape \[47\], config\.json says \[48\]"):
        load_weights(directory, config)
    del weights["model.norm.weight"]
    tiny_models.write_safetensors(directory / "model.safetensors", weights)
    with pytest.raises(ConfigError, match=r"has no tensor 'model\.norm\.weight'"):
        load_weights(directory, config)
