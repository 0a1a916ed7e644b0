"""Reading traces, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.replay.traces import ideal_cached_tokens, read_trace


def _mooncake(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _line(timestamp: float, hash_ids: list[int], *, input_length: int | None = None, output_length: int = 5) -> dict:
    length = 512 * len(hash_ids) if input_length is None else input_length
    return {"timestamp": timestamp, "input_length": length, "output_length": output_length, "hash_ids": hash_ids}


def test_mooncake_lines_become_requests_by_arrival(tmp_path: Path) -> None:
    path = _mooncake(tmp_path / "t.jsonl", _line(3500, [1, 2]), _line(1000, [1, 3, 4], input_length=1100))
    trace = read_trace(path)
    assert (trace.name, trace.block_size) == ("t", 512)
    first, second = trace.requests
    assert (first.arrival_seconds, first.input_tokens, first.output_tokens) == (0.0, 1100, 5)
    assert second.arrival_seconds == pytest.approx(2.5)
    assert len(first.hashes) == 2  # the third id names a block that is not full


def test_equal_prefixes_have_equal_hashes_and_nothing_else_has(tmp_path: Path) -> None:
    lines = [_line(0, [1, 2, 3]), _line(1, [1, 2, 4]), _line(2, [5, 2, 3]), _line(3, [2, 1, 3])]
    one, other, shifted, swapped = (r.hashes for r in read_trace(_mooncake(tmp_path / "t", *lines)).requests)
    assert one[:2] == other[:2]
    assert len({*one, *other, *shifted, *swapped}) == 3 + 1 + 3 + 3


def test_limit_and_speed(tmp_path: Path) -> None:
    path = _mooncake(tmp_path / "t", *(_line(1000 * n, [n]) for n in range(10)))
    trace = read_trace(path, limit=3, speed=2.0)
    assert [request.arrival_seconds for request in trace.requests] == [0.0, 0.5, 1.0]


def test_a_request_without_output_still_has_one_token(tmp_path: Path) -> None:
    [request] = read_trace(_mooncake(tmp_path / "t", _line(0, [1], output_length=0))).requests
    assert request.output_tokens == 1


def test_empty_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(f"\n{json.dumps(_line(0, [1]))}\n\n")
    assert len(read_trace(path).requests) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 5}', "hash_ids"),
        (json.dumps(_line(-1, [1])), "timestamp"),
        (json.dumps(_line(0, [1], input_length=0)), "input_length"),
        (json.dumps(_line(0, [1], input_length=1 << 40)), "input_length"),
        (json.dumps(_line(0, [1], output_length=-5)), "output_length"),
        (json.dumps(_line(0, [-1])), "hash_ids"),
        (json.dumps(_line(0, [1], input_length=1024)), "1 hash_ids for 2 full blocks"),
        (json.dumps(_line("soon", [1])), "timestamp"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(_line(0, [1]))}\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert caught.value.message.startswith(f"{path}:2: ")
    assert message in caught.value.message


def test_azure_rows_become_requests_without_blocks(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_bytes(
        b"\xef\xbb\xbfTIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        b"2023-11-16 18:15:46.6805900,374,44\r\n"
        b"2023-11-16 18:15:50.9951690,396,109\r\n"
        b"2023-11-16 18:15:51.995169+00:00,3960,0\r\n"
    )
    trace = read_trace(path)
    assert [r.arrival_seconds for r in trace.requests] == pytest.approx([0.0, 4.314579, 5.314579], abs=1e-5)
    assert [(r.input_tokens, r.output_tokens) for r in trace.requests] == [(374, 44), (396, 109), (3960, 1)]
    assert sum(ideal_cached_tokens(trace)) == 0


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("TIME,ContextTokens,GeneratedTokens\n", 1, "no column TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", 2, "'yesterday'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-13-16 18:15:46,1,1\n", 2, "month"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,one,1\n", 2, "'one'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1\n", 2, "''"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,0,1\n", 2, "0 context"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert caught.value.message.startswith(f"{path}:{line}: ")
    assert message in caught.value.message


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in ((empty, "has no requests"), (binary, "cannot be read"), (tmp_path / "no", "cannot be read")):
        with pytest.raises(ConfigError, match=message):
            read_trace(path)


def test_the_ideal_finds_full_blocks_but_never_the_last_token(tmp_path: Path) -> None:
    path = _mooncake(
        tmp_path / "t", _line(0, [1, 2]), _line(1, [1, 2]), _line(2, [1, 2], input_length=1025), _line(3, [2])
    )
    assert list(ideal_cached_tokens(read_trace(path))) == [0, 512, 1024, 0]
