import json

import pytest

from dynamo.errors import ConfigError, InvalidRequest
from dynamo.preprocessor import Detokenizer, TextModel, artifact_of, collect
from dynamo.preprocessor.model_files import read_model_files
from dynamo.protocols.llm import SamplingOptions


def write(directory, name, value):
    (directory / name).write_text(json.dumps(value))


def test_bundle_of_a_directory(model_directory):
    model = TextModel.from_directory(model_directory, name="m")
    assert model.eos_token_ids == (1, 7)
    assert model.context_length_tokens == 4096
    assert model.default_sampling == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert SamplingOptions(**model.default_sampling).top_k == 20
    assert model.template.render([{"role": "user", "content": "hi"}]) == "<s>user: hi\n"
    assert model.tokenizer.special_tokens["eos_token"] == "</s>"


def test_artifacts_make_the_same_model(model_directory):
    files = read_model_files(model_directory)
    assert {name: artifact_of(data) for name, data in files.items()} == collect(model_directory)
    here, there = TextModel.from_directory(model_directory), TextModel.from_artifacts(files, name="m")
    assert here.eos_token_ids == there.eos_token_ids
    assert here.tokenizer.encode("the dog").tolist() == there.tokenizer.encode("the dog").tolist()


def test_greedy_models_have_no_default_sampling(model_directory):
    write(model_directory, "generation_config.json", {"temperature": 0.6, "do_sample": False})
    assert TextModel.from_directory(model_directory).default_sampling == {}


@pytest.mark.parametrize(("key", "value"), [("temperature", "hot"), ("top_k", 0.5), ("top_p", True), ("min_p", [1])])
def test_sampling_defaults_of_the_wrong_type_are_named(model_directory, key, value):
    write(model_directory, "generation_config.json", {"do_sample": True, key: value})
    with pytest.raises(ConfigError, match=f"generation_config.json: {key} must be a number"):
        TextModel.from_directory(model_directory)


def test_end_of_sequence_ids_fall_back_to_the_config_and_the_tokenizer(model_directory):
    write(model_directory, "generation_config.json", {})
    write(model_directory, "config.json", {"eos_token_id": 5})
    assert TextModel.from_directory(model_directory).eos_token_ids == (1, 5)
    write(model_directory, "config.json", {"eos_token_id": None})
    assert TextModel.from_directory(model_directory).eos_token_ids == (1,)


def test_text_part_of_a_multimodal_config(model_directory):
    write(model_directory, "generation_config.json", {})
    write(model_directory, "config.json", {"text_config": {"max_position_embeddings": 77, "eos_token_id": [9]}})
    model = TextModel.from_directory(model_directory)
    assert model.context_length_tokens == 77
    assert model.eos_token_ids == (1, 9)


def test_unknown_context_length_is_zero(model_directory):
    write(model_directory, "config.json", {"max_position_embeddings": "many", "n_ctx": -1})
    assert TextModel.from_directory(model_directory).context_length_tokens == 0


def test_completions_work_without_a_template(model_directory):
    (model_directory / "chat_template.jinja").unlink()
    model = TextModel.from_directory(model_directory, name="base")
    assert model.tokenizer.encode("the").size > 0
    with pytest.raises(InvalidRequest, match="'base' has no chat template"):
        model.template.render([{"role": "user", "content": "hi"}])


def test_only_the_tokenizer_is_needed(model_directory):
    for path in model_directory.iterdir():
        if path.name != "tokenizer.json":
            path.unlink()
    model = TextModel.from_directory(model_directory)
    assert (model.eos_token_ids, model.context_length_tokens) == ((), 0)


def test_missing_tokenizer_is_named(model_directory):
    (model_directory / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"'m' has no tokenizer\.json"):
        TextModel.from_directory(model_directory, name="m")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"a":'])
def test_corrupt_files_are_named(model_directory, name, content):
    (model_directory / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        TextModel.from_directory(model_directory)


def test_packaged_demo_model():
    from importlib.resources import as_file, files

    packaged = files("dynamo.reference") / "demo_model"
    if not packaged.is_dir():
        pytest.skip("the packaged demo model is not here")
    with as_file(packaged) as directory:
        model = TextModel.from_directory(directory)
    prompt = model.template.render([{"role": "user", "content": "Tell me a story."}])
    assert prompt == "<|bos|><|user|>Tell me a story.<|assistant|>"
    ids = model.tokenizer.encode(prompt)
    assert ids[0] == model.tokenizer.raw.token_to_id("<|bos|>")
    assert model.eos_token_ids == (1,)
    assert model.context_length_tokens == 4096
    detokenizer = Detokenizer(model.tokenizer)
    assert detokenizer.feed(ids.tolist()) + detokenizer.finish() == "Tell me a story."
