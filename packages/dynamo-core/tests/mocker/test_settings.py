"""Flags: our own, those of others, and the worker host's."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.mocker.command_line import worker_arguments
from dynamo.mocker.settings import is_foreign, parse_flags


def test_flags_that_simulators_users_know_are_taken() -> None:
    settings = parse_flags(
        [
            "--num-gpu-blocks-override",
            "100",
            "--block-size",
            "32",
            "--max-num-seqs",
            "7",
            "--max-num-batched-tokens",
            "640",
            "--speedup-ratio",
            "2",
            "--decode-speedup-ratio",
            "1.5",
            "--data-parallel-size",
            "3",
            "--startup-time",
            "0.5",
            "--planner-profile-data",
            "/x",
            "--kv-transfer-bandwidth",
            "32",
            "--kv-bytes-per-token",
            "1024",
            "--no-enable-prefix-caching",
            "--enable-chunked-prefill",
            "--max-model-len",
            "4000",
        ]
    )
    assert settings.num_gpu_blocks == 100
    assert settings.data_parallel_size == 3
    assert settings.perf_model == "/x"
    assert not settings.enable_prefix_caching
    assert settings.enable_chunked_prefill


def test_flags_without_a_meaning_here_are_named_and_dropped_with_their_values(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        settings = parse_flags(
            [
                "--engine-type",
                "sglang",
                "--num-workers=4",
                "--aic-perf-model",
                "--zmq-kv-events-ports",
                "1,2",
                "--block-size",
                "32",
                "--router-mode",
                "kv",
                "--no-router-kv-events",
                "--sglang-generate",
                "--reasoning",
                "{}",
            ]
        )
    assert settings.block_size == 32
    named = [record.getMessage().partition(" ")[0] for record in caplog.records]
    for flag in ("--engine-type", "--num-workers", "--aic-perf-model", "--sglang-generate", "--no-router-kv-events"):
        assert flag in named


def test_own_flags_are_never_foreign() -> None:
    assert not any(map(is_foreign, ("--block-size", "--speedup-ratio=3", "--kv-bytes-per-token", "--seed")))


def test_a_file_of_arguments_gives_way_to_flags(tmp_path: Path) -> None:
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"num_gpu_blocks": 50, "dp_size": 2, "block_size": 8}))
    settings = parse_flags(["--extra-engine-args", str(path), "--block-size", "16"])
    assert (settings.num_gpu_blocks, settings.data_parallel_size, settings.block_size) == (50, 2, 16)


@pytest.mark.parametrize("content", ["", "[1]", '{"block_sise": 3}', '{"block_size": "many"}'])
def test_a_wrong_file_of_arguments_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "args.json"
    path.write_text(content)
    with pytest.raises(ConfigError):
        parse_flags(["--extra-engine-args", str(path)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--speedup-ration", "5"), "--speedup-ratio"),
        (("--block-size", "0"), "--block-size"),
        (("--num-gpu-blocks-override", "many"), "many"),
        (("--decode-speedup-ratio", "0"), "--decode-speedup-ratio"),
        (("--output", "poem"), "poem"),
        (("stray",), "stray"),
    ],
)
def test_a_wrong_flag_is_named(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_flags(flags)
    assert message in str(caught.value)


def test_the_worker_host_gets_its_own_spelling() -> None:
    argv = ["--model-path", "m", "--endpoint", "dyn://prod.decode.generate", "--is-prefill-worker", "--block-size", "4"]
    assert worker_arguments(argv) == [
        *("--model-path", "m", "--namespace", "prod", "--component", "decode", "--endpoint-name", "generate"),
        *("--disaggregation-mode", "prefill", "--block-size", "4"),
    ]
    assert worker_arguments(["--endpoint=a.b.c", "--is-decode-worker"])[-2:] == ["--disaggregation-mode", "decode"]


@pytest.mark.parametrize("endpoint", [["--endpoint"], ["--endpoint", "dyn://a.b"], ["--endpoint=a.b.c.d"]])
def test_a_wrong_endpoint_is_refused(endpoint: list[str]) -> None:
    with pytest.raises(ConfigError, match="parts"):
        worker_arguments(endpoint)


@pytest.mark.parametrize(("flags", "message"), [(("--endpoint", "a.b"), "2 parts"), (("--sped", "1"), "--sped")])
def test_the_program_says_what_is_wrong_without_a_traceback(flags: tuple[str, ...], message: str) -> None:
    command = [sys.executable, "-m", "dynamo.mocker", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert message in done.stderr
    assert "Traceback" not in done.stderr
