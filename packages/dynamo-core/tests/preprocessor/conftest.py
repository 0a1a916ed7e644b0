"""Tokenizers of every decoding scheme, built here, and a model directory made of them."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from dynamo.preprocessor import Tokenizer

TEXT = [
    "Once upon a time there was a small dog who liked to run in the park.",
    "Stop here. User: hello, Assistant: héllo wörld, naïve café, 日本語のテキスト, 😀😃 emoji",
    "for i in range(10):\n    print(i)\n\n",
]


def byte_level() -> tokenizers.Tokenizer:
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT, trainer)
    raw.add_tokens([AddedToken("<tool call>", special=False)])
    raw.add_special_tokens([AddedToken("<|im end|>", special=True)])
    return raw


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2: SentencePiece BPE, bytes as tokens of their own, the first space of a text dropped."""
    words = ["▁", "▁the", "▁dog", "▁run", "s", "t", "o", "p", "h", "e", "é", "▁▁", "日", "."]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    raw = tokenizers.Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return raw


def metaspace() -> tokenizers.Tokenizer:
    raw = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁the", -1), ("▁dog", -2), ("s", -3), ("▁", -4)], 0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.add_special_tokens(["</s>"])
    return raw


def wordpiece() -> tokenizers.Tokenizer:
    words = ["[UNK]", "the", "dog", "##s", "##gy", "run", "##ning", ".", "stop"]
    raw = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(cleanup=False)
    raw.add_special_tokens(["[SEP]"])
    return raw


def load(raw: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer.from_files(raw.to_str().encode())


BUILDERS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "metaspace": metaspace, "wordpiece": wordpiece}


@pytest.fixture(scope="session")
def kinds():
    """Scheme to `Tokenizer`."""
    return {name: load(build()) for name, build in BUILDERS.items()}


@pytest.fixture(scope="session")
def bpe(kinds):
    return kinds["byte_level"]


@pytest.fixture(scope="session")
def llama(kinds):
    return kinds["byte_fallback"]


@pytest.fixture
def model_directory(tmp_path, bpe):
    """A complete model directory; tests break it."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "tokenizer.json").write_text(bpe.raw.to_str())
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True})
    )
    (directory / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    (directory / "config.json").write_text(json.dumps({"max_position_embeddings": 4096, "eos_token_id": 1}))
    (directory / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 7]})
    )
    return directory
