"""Batches of token ids for `train.py`, with a mask of what the model has to learn to say."""

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch  # noqa: TID253
from chat import ASSISTANT, EOS, NO_THINKING, Conversation
from tokenizers import Tokenizer
from torch import Tensor  # noqa: TID253

_POOL = 4096  # texts that are sorted by length together: enough for batches with little padding
_LONGEST = 1024  # tokens; longer conversations are left out


@dataclass(frozen=True)
class Example:
    """One text: token ids, and for each whether the model is trained to produce it."""

    ids: list[int]
    learned: list[bool]


@dataclass(frozen=True)
class Batch:
    """`ids` [texts, tokens], padded at the end, and `learned`, the mask of targets, of the same shape."""

    ids: Tensor
    learned: Tensor


class Encoder:
    """Turns conversations and plain texts into examples."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._assistant = tokenizer.token_to_id(ASSISTANT)
        self._eos = tokenizer.token_to_id(EOS)
        self._prefilled = len(tokenizer.encode(NO_THINKING, add_special_tokens=False).ids)

    def encode(self, items: list[Conversation | str]) -> list[Example]:
        """The examples of `items`, in their order."""
        texts = [item if isinstance(item, str) else item.render() for item in items]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [Example(e.ids, self._learned(e.ids, item)) for e, item in zip(encodings, items, strict=True)]

    def _learned(self, ids: list[int], item: Conversation | str) -> list[bool]:
        """Answers are learned, up to and including the end token; questions are not.

        Two exceptions: an earlier answer whose reasoning the template left out, which would teach to skip reasoning,
        and the empty reasoning that the prompt already holds when the client has switched reasoning off.
        """
        if isinstance(item, str):
            return [True] * len(ids)
        answers = [message for message in item.messages if message["role"] == "assistant"]
        shown = ["</think>" not in (answer["content"] or "") for answer in answers[:-1]]
        keep = iter([*shown, True])
        learned = [False] * len(ids)
        start = 0
        for position, token in enumerate(ids):
            if token == self._assistant:
                start = position + 1
            elif token == self._eos and next(keep):
                learned[start : position + 1] = [True] * (position + 1 - start)
        if not item.thinking:
            learned[start : start + self._prefilled] = [False] * self._prefilled
        return learned


def batches(items: Iterable[Conversation | str], encoder: Encoder, tokens: int, seed: int) -> Iterator[Batch]:
    """Batches of about `tokens` tokens, each of texts of similar length."""
    rng = random.Random(seed)
    stream = iter(items)
    while pool := list(itertools.islice(stream, _POOL)):
        examples = [example for example in encoder.encode(pool) if len(example.ids) <= _LONGEST]
        examples.sort(key=lambda example: len(example.ids))
        groups = list(_grouped(examples, tokens))
        rng.shuffle(groups)
        yield from map(_padded, groups)


def _grouped(examples: list[Example], tokens: int) -> Iterator[list[Example]]:
    group: list[Example] = []
    for example in examples:  # from short to long: the newest sets the padded length
        if group and len(example.ids) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(example)
    if group:
        yield group


def _padded(group: list[Example]) -> Batch:
    longest = max(len(example.ids) for example in group)
    ids = torch.zeros(len(group), longest, dtype=torch.long)
    learned = torch.zeros(len(group), longest, dtype=torch.bool)
    for row, example in enumerate(group):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        learned[row, : len(example.ids)] = torch.tensor(example.learned)
    return Batch(ids, learned)
