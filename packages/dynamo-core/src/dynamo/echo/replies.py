r"""What the echo engine answers: the prompt's own tokens, or the first scripted reply that matches the prompt.

A script has one JSON object per line::

    {"match": "weather", "text": "<tool_call>{\"name\": \"get_weather\"}</tool_call>"}
    {"match": [5, 6], "token_ids": [7, 8, 9], "finish_reason": "length"}
    {"text": "I do not know.", "delay_ms": 20}

`match` is a part of the prompt, as text or as token ids; without it the reply fits every prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dynamo.errors import ConfigError
from dynamo.protocols.llm import FinishReason

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Replies", "Reply"]


class Reply(msgspec.Struct, frozen=True):
    """The tokens of one answer. A request that asks for more than there is (`ignore_eos`) gets them again."""

    token_ids: Sequence[int]
    finish_reason: FinishReason = "stop"
    delay_ms: float = 0.0

    def token_at(self, position: int) -> int:
        """Token number `position`, counted around."""
        return self.token_ids[position % len(self.token_ids)]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    match: str | list[int] = ""
    token_ids: list[int] | None = None
    text: str | None = None
    finish_reason: FinishReason = "stop"
    delay_ms: float = 0.0


class Replies:
    """The replies of one engine; without a script every prompt is its own reply."""

    def __init__(self, script: Sequence[tuple[_Line, Reply]] = (), tokenizer: Tokenizer | None = None) -> None:
        self._script = script
        self._tokenizer = tokenizer
        self._reads_ids = any(isinstance(line.match, list) for line, _ in script)

    @classmethod
    def load(cls, script: Path, model_directory: Path) -> Replies:
        """Read `script`; the tokenizer of `model_directory` turns its text into tokens.

        Raises:
            ConfigError: a line of the script is wrong, or it has text and there is no tokenizer.
        """
        lines = _read(script)
        speaks = any(line.text is not None or (line.match and isinstance(line.match, str)) for line in lines)
        tokenizer = _load_tokenizer(model_directory) if speaks else None
        return cls([(line, _reply(line, tokenizer)) for line in lines], tokenizer)

    def find(self, prompt: Sequence[int]) -> Reply:
        """The reply to `prompt`: the first line of the script that fits, else the prompt."""
        if not self._script:
            return Reply(prompt)
        text = self._tokenizer.decode(list(prompt), skip_special_tokens=False) if self._tokenizer else ""
        spelled = _spelled(prompt) if self._reads_ids else ""
        for line, reply in self._script:
            if line.match in text if isinstance(line.match, str) else _spelled(line.match) in spelled:
                return reply
        return Reply(prompt)


def _reply(line: _Line, tokenizer: Tokenizer | None) -> Reply:
    ids = line.token_ids or []
    if line.text is not None and tokenizer is not None:
        ids = tokenizer.encode(line.text, add_special_tokens=False).ids
    return Reply(ids, line.finish_reason, line.delay_ms)


def _spelled(token_ids: Sequence[int]) -> str:
    return f",{','.join(map(str, token_ids))},"


def _read(script: Path) -> list[_Line]:
    try:
        text = script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the echo engine cannot read its script {script}: {error}", param="script") from error
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            reply = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{script}:{number}: {error}", param="script") from error
        if (reply.text is None) == (reply.token_ids is None):
            raise ConfigError(f"{script}:{number}: give either 'text' or 'token_ids'", param="script")
        lines.append(reply)
    return lines


def _load_tokenizer(model_directory: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    path = model_directory / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"the echo engine's script has text, but there is no {path}", hint="give --model DIRECTORY")
    return Tokenizer.from_file(str(path))
