"""Scripts of the echo engine."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from dynamo.echo.replies import Replies, Reply
from dynamo.errors import ConfigError

MODEL = Path(str(resources.files("dynamo.reference"))) / "demo_model"
TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def _ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def _script(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "script.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_without_a_script_a_prompt_is_its_own_reply() -> None:
    assert Replies().find([4, 5]) == Reply([4, 5])


def test_the_first_line_that_fits_wins(tmp_path: Path) -> None:
    script = _script(
        tmp_path,
        {"match": [5, 6], "token_ids": [1], "finish_reason": "length", "delay_ms": 3},
        "",
        {"token_ids": [2]},
        {"token_ids": [3]},
    )
    replies = Replies.load(script, tmp_path)
    assert replies.find([4, 5, 6, 7]) == Reply([1], "length", 3)
    assert replies.find([5, 7, 6]) == Reply([2])
    assert replies.find([55, 6]) == Reply([2])


def test_a_prompt_that_fits_no_line_is_echoed(tmp_path: Path) -> None:
    assert Replies.load(_script(tmp_path, {"match": [9], "token_ids": [1]}), tmp_path).find([4]).token_ids == [4]


def test_text_goes_through_the_tokenizer_both_ways(tmp_path: Path) -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "Tromsø"}}</tool_call>'
    replies = Replies.load(_script(tmp_path, {"match": "weather in", "text": text}), MODEL)
    reply = replies.find(_ids("What is the weather in Tromsø?"))
    assert TOKENIZER.decode(list(reply.token_ids), skip_special_tokens=False) == text
    assert replies.find(_ids("Hello")).token_ids == _ids("Hello")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"script\.jsonl:2: "),
        ({"text": "a", "token_ids": [1]}, r":2: give either 'text' or 'token_ids'"),
        ({"match": "x"}, r":2: give either"),
        ({"txt": "a"}, r":2: .*txt"),
        ({"token_ids": ["a"]}, r":2: .*int"),
        ({"token_ids": [1], "finish_reason": "tired"}, r":2: .*tired"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Replies.load(_script(tmp_path, {"token_ids": [1]}, line), MODEL)


def test_text_without_a_tokenizer_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*tokenizer\.json\ngive --model DIRECTORY"):
        Replies.load(_script(tmp_path, {"text": "a"}), tmp_path)


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read its script .*nowhere"):
        Replies.load(tmp_path / "nowhere", MODEL)
