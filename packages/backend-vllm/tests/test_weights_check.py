from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.reference import demo_model_directory
from dynamo.vllm.weights_check import check_weights


def test_whole_files_and_what_is_no_file_pass(tmp_path: Path):
    model = shutil.copytree(demo_model_directory(), tmp_path / "model")
    os.mkfifo(model / "pipe.safetensors")
    check_weights(model)
    check_weights(tmp_path)  # weights of another format
    check_weights(tmp_path / "nothing")


@pytest.mark.parametrize("missing", [1, 1000])
def test_a_shard_that_is_cut_off_is_named(tmp_path: Path, missing: int):
    model = shutil.copytree(demo_model_directory(), tmp_path / "model")
    shard = model / "model-00002-of-00002.safetensors"
    shard.write_bytes((model / "model.safetensors").read_bytes()[:-missing])
    with pytest.raises(ConfigError, match=r"model-00002-of-00002\.safetensors is not .* it ends after") as raised:
        check_weights(model)
    assert raised.value.hint == "download the file again"
