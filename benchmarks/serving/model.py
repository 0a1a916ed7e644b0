"""A model directory without weights, made in seconds: the benchmarks need a tokenizer of realistic size, not a model.

Byte-level BPE with the normalizer, the pre-tokenizer expression and the chat format that Qwen's models use, trained on
the text that every Python brings. `python -m benchmarks.serving.model DIRECTORY` makes one by hand.
"""

from __future__ import annotations

import inspect
import json
import pydoc_data.topics
import random
import re
import sys
from importlib import import_module
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

__all__ = ["CONTEXT_TOKENS", "CORPUS", "MODEL", "Corpus", "make_model"]

MODEL = "bench"
CONTEXT_TOKENS = 262_144
VOCABULARY = 32_000
_MODULES = (
    "argparse",
    "asyncio.base_events",
    "decimal",
    "inspect",
    "logging",
    "pickle",
    "tarfile",
    "typing",
    "zipfile",
)
_EXPRESSION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS = "\n".join(pydoc_data.topics.topics.values())


def make_model(directory: Path) -> None:
    """Write tokenizer, template and configuration into `directory`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_EXPRESSION), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in _SPECIAL],
    )
    sources = [inspect.getsource(import_module(name)) for name in _MODULES]
    tokenizer.train_from_iterator([CORPUS, *sources], trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    end, *_ = (tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
    files = {
        "tokenizer_config.json": {"chat_template": _TEMPLATE, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "generation_config.json": {"eos_token_id": end},
        "config.json": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "max_position_embeddings": CONTEXT_TOKENS,
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "eos_token_id": end,
            "bos_token_id": end,
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), "utf-8")


class Corpus:
    """Texts of wanted token lengths, no two alike from their first words on: no prefix cache can help with them."""

    def __init__(self, tokenizer: Tokenizer, seed: int = 0) -> None:
        words = re.findall(r"[A-Za-z0-9,.()']+", CORPUS)
        self._random = random.Random(seed)
        self._random.shuffle(words)
        self._text = " ".join(words)
        self._characters_per_token = len(self._text) / len(tokenizer.encode(self._text, add_special_tokens=False).ids)

    def text(self, tokens: int) -> str:
        """About `tokens` tokens of English words, ASCII without quotes or escapes."""
        size = max(1, round(tokens * self._characters_per_token))
        start = self._random.randrange(max(1, len(self._text) - size))
        text = self._text[start : start + size]
        while len(text) < size:
            text += " " + self._text[: size - len(text)]
        return f"{self._random.getrandbits(32)} {text}"


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
