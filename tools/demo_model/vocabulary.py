"""The demo model's tokenizer: byte-level BPE with one token per number up to 100. Called by `train.py` only."""

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path

from chat import BOS, EOS, MARKUP_TOKENS, PAD, ROLE_TOKENS, TEMPLATE
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

MAX_POSITIONS = 4096
# A lower-case word, a number of up to three digits or a sign takes the space before it. A capitalised word does not:
# a name looks the same in a sentence and inside JSON quotes, so that the model can learn to copy it.
_PIECES = r" ?\p{Ll}+|\p{Lu}+\p{Ll}*| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
# Often enough to make each number up to a hundred one token, with and without the space.
_NUMBERS = [" ".join(map(str, range(101))), *map(str, range(101))] * 1000


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of exactly `size` tokens.

    Plain text gets the begin token when special tokens are added; rendered chats carry it already.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [BOS, EOS, PAD, *ROLE_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(MARKUP_TOKENS),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(_without_markup(texts, special), _NUMBERS), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    if tokenizer.get_vocab_size() != size:
        message = f"the training text gave {tokenizer.get_vocab_size()} tokens, {size} were asked for"
        raise ValueError(message)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes the tokenizer and the chat template as serving stacks look for them.

    The class is named as transformers 4 and 5 both know it; only the former needs it.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def _without_markup(texts: Iterable[str], special: list[str]) -> Iterable[str]:
    """The texts with added tokens blanked out: merges must not be learned from pieces of them."""
    added = re.compile("|".join(map(re.escape, (*special, *MARKUP_TOKENS))))
    for text in texts:
        yield added.sub("\n", text)
