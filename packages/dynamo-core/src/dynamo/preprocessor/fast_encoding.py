"""Encoding by `fastokens`, which is several times faster than `tokenizers`, where it gives the same ids.

It is optional, and younger than the tokenizers that it reads; so `Tokenizer` takes it only after both have encoded a
corpus of everything that tokenizers are known to differ in, and the pieces of this tokenizer's own vocabulary.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tokenizers

__all__ = ["Encoder", "RawEncoder", "fast_encoder", "proof_texts"]

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.uint32]

_VOCABULARY_SAMPLE = 2000
_RANDOM_TEXTS = 100
#: Of a batch of texts this long or longer, `fastokens` encodes some on threads of its own, which spin while they wait.
_SPREAD_CHARACTERS = 65536
#: Ranges of code points: Latin, combining marks, Greek to Thai, Hangul, Kana, CJK, fullwidth, emoji, private use.
_RANGES = (
    (0x00, 0x7F),
    (0x80, 0x24F),
    (0x300, 0x36F),
    (0x370, 0xE7F),
    (0x1100, 0x11FF),
    (0x1E00, 0x206F),
    (0x3000, 0x30FF),
    (0x4E00, 0x4FFF),
    (0xAC00, 0xADFF),
    (0xFB00, 0xFFEF),
    (0x1F300, 0x1FAFF),
    (0xE000, 0xE010),
)
_TEXTS = (
    "",
    " ",
    "  two  spaces   and\t\ttabs \n\n new\r\nlines\r \n\t\n   ",
    "\u00a0no\u2003break\u2028line\u2029paragraph\u200bzero\ufeffmark\x00\x01\x7f\x85control\u3000",
    "It's we'll I'M you'Re 'S 'T they’d o'clock ''''",
    "0 12 123 1234 12345678901234567890 3.14 1,000,000 ٣٤٥ ४५६ ½ ² ⅷ 一二三 0x1F 1e-9",
    "def f(x):\n    return x ** 2  # comment\n\n\n\tif a!=b && c: {\"k\": [1, 'v', null]};;;",
    "e\u0301 é A\u030a Å ﬁ ① ｆｕｌｌ ẛ̣ q̣̇ \u1100\u1161\u11a8 각 한국어 텍스트 \u0958 \u2126 K",
    "中文字符，没有空格。日本語のテキスト、カタカナ・ｶﾀｶﾅ。ไทยไม่มีช่องว่าง العربية עברית हिन्दी Ελληνικά Кириллица ß İı ſ",
    "😀👩‍👩‍👧‍👦🏳️‍🌈🇩🇪1️⃣👍🏽 ❤️ \U0001f9d1\u200d\U0001f680",
    "a" * 600 + " " * 300 + "\n" * 200 + "ab" * 300 + "!" * 200 + "9" * 200 + "é" * 200,
    "https://example.org/a_b-c?d=e&f=%20#g <b>html</b> $x_1^2$ C:\\path\\n @user #tag snake_case camelCase ALLCAPS",
    "<|im_start|>user\nhi<|im_end|>\n[INST] <<SYS>> </s><s> <think></think> <tool_call> <｜User｜> <|",
    "\u2581under\u2581line \u0120byte\u010alevel ##piece </w> <unk> <0x0A> [UNK] \ufffd\ufffe",
)


class Encoder(Protocol):
    """Turns texts into ids; frees the interpreter lock for most of the time."""

    quick_characters: int
    """Texts of up to this many characters are encoded within about a millisecond."""

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Ids]:
        """Ids of each text, each shape ``[n_tokens]``."""
        ...


class RawEncoder:
    """Encodes by `tokenizers`: about 2 us a token."""

    quick_characters = 8192

    def __init__(self, raw: tokenizers.Tokenizer) -> None:
        self._raw = raw

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Ids]:
        """See `Encoder`."""
        # The batch call frees the interpreter lock (`encode` does not) and skips offsets: 30 % less time.
        encoded = self._raw.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [np.array(one.ids, dtype=np.uint32) for one in encoded]


class _FastEncoder:
    """Encodes by `fastokens`: 10 to 100 ns a token."""

    quick_characters = 65536

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Ids]:
        """See `Encoder`."""
        if len(texts) > 1 and sum(map(len, texts)) < _SPREAD_CHARACTERS:
            # One by one they all stay on this thread.
            return [ids for text in texts for ids in self.encode([text], add_special_tokens=add_special_tokens)]
        packed, ends = self._fast.encode_batch_flat(texts, add_special_tokens=add_special_tokens)
        ids = np.frombuffer(packed, dtype="<u4")
        if len(texts) == 1:
            return [ids]
        offsets = np.frombuffer(ends, dtype="<u8").tolist()
        return [ids[start:end] for start, end in itertools.pairwise(offsets)]


def fast_encoder(raw: tokenizers.Tokenizer, tokenizer_json: bytes) -> Encoder | None:
    """An encoder by `fastokens` that gives the ids of `raw`; None when it is not installed, or differs.

    Takes a second for a vocabulary of usual size: keep it off the event loop.
    """
    try:
        import fastokens
    except ImportError:
        logger.info("prompts are encoded several times faster with: pip install 'dynamo-core[fastokens]'")
        return None
    try:
        fast = fastokens.Tokenizer.from_json_str(tokenizer_json.decode())
        fast.no_truncation()
        fast.no_padding()
        encoder = _FastEncoder(fast)
        differs = _difference(encoder, RawEncoder(raw), list(proof_texts(raw)))
    except (ValueError, RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
        # What it cannot read, and what its version does not have, it says in one of these.
        logger.info("fastokens is not used: it cannot read this tokenizer: %s", error)
        return None
    if differs is not None:
        logger.warning("fastokens is not used: its ids differ from those of tokenizers on %r", differs[:80])
        return None
    return encoder


def proof_texts(raw: tokenizers.Tokenizer) -> Iterator[str]:
    """The texts on which both must agree. The same ones each time."""
    yield from _TEXTS
    rng = random.Random(0)
    added = sorted(token.content for token in raw.get_added_tokens_decoder().values())
    for token in added[:64]:
        yield f"{token}"
        yield f"a{token}b {token} \n{token}\n  {token}{token}x"
    for _ in range(_RANDOM_TEXTS):
        ranges = rng.sample(_RANGES, 3)
        pieces = [chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randrange(1, 120))]
        pieces += rng.choices(added, k=2) if added else []
        rng.shuffle(pieces)
        yield "".join(pieces)
    size = raw.get_vocab_size(with_added_tokens=True)
    sample = rng.sample(range(size), min(size, _VOCABULARY_SAMPLE))
    words = raw.decode_batch([[token] for token in sample], skip_special_tokens=False)
    for start in range(0, len(words), 50):
        yield "".join(words[start : start + 50])
        yield " ".join(words[start : start + 50])


def _difference(one: Encoder, other: Encoder, texts: list[str]) -> str | None:
    """The first text whose ids differ. That special tokens are added alike shows on a few."""
    for add_special_tokens, some in ((False, texts), (True, texts[: len(_TEXTS)])):
        mine = one.encode(some, add_special_tokens=add_special_tokens)
        theirs = other.encode(some, add_special_tokens=add_special_tokens)
        for text, ids, expected in zip(some, mine, theirs, strict=True):
            if not np.array_equal(ids, expected):
                return text
    return None
