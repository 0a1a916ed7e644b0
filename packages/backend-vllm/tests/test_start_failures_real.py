"""What a user sees when vLLM does not start, and that nothing is left behind. `nox -s "engine(vllm)"`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import psutil
import pytest

from dynamo.errors import ConfigError, DynamoError, EngineError
from dynamo.protocols.engine import EngineOptions
from dynamo.reference import demo_model_directory
from dynamo.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),
]

SMALL = ("--kv-cache-memory-bytes=16777216", "--max-model-len=1024")


@pytest.fixture(autouse=True)
def nothing_left_behind():
    def files() -> set[str]:
        temporary = Path(tempfile.gettempdir())
        return {str(path) for path in [*temporary.glob(f"dynamo-vllm-{os.getpid()}-*"), *_unused_shared_memory()]}

    processes, before = set(psutil.Process().children(recursive=True)), files()
    yield
    left = set(psutil.Process().children(recursive=True)) - processes
    assert [process.cmdline() for process in left if "resource_tracker" not in " ".join(process.cmdline())] == []
    assert files() - before == set()


def _unused_shared_memory() -> list[Path]:
    """What lies in /dev/shm and no process has open; semaphores are removed by Python's tracker when this one ends."""
    maps = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            maps.append(Path(f"/proc/{process.pid}/maps").read_text())
    segments = [path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")]
    return [path for path in segments if not any(str(path) in text for text in maps)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model_directory(), tmp_path / "model"))


async def failure(*argv: str, model: Path | None = None) -> DynamoError:
    engine = VllmEngine(EngineOptions(model=str(model) if model else None, argv=argv))
    with pytest.raises(DynamoError) as raised:
        await engine.start()
    await engine.cleanup()
    return raised.value


async def test_an_unknown_flag_names_the_nearest():
    error = await failure("--blok-size", "32")
    assert isinstance(error, ConfigError)
    assert "--blok-size" in error.message
    assert error.hint == "did you mean --block-size?"


@pytest.mark.parametrize("argv", [("--dtype", "float17"), ("--max-model-len", "long"), ("--seed",), ("positional",)])
async def test_a_wrong_value_is_refused_in_vllms_words(argv):
    error = await failure(*argv)
    assert isinstance(error, ConfigError)
    assert argv[0].lstrip("-") in error.message


async def test_a_configuration_that_cannot_be(model):
    error = await failure("--max-model-len", "100000000", model=model)
    assert isinstance(error, ConfigError)
    assert "100000000" in error.message


async def test_a_directory_that_holds_no_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    assert "no-such-model" in (await failure(model=tmp_path)).message


async def test_a_cache_that_the_model_does_not_fit_into():
    error = await failure("--kv-cache-memory-bytes=65536", "--max-model-len=1024")
    assert isinstance(error, EngineError)
    assert "cache" in error.message
    assert "--kv-cache-memory-bytes" in (error.hint or "")


@pytest.mark.parametrize(("length", "said"), [(-1000, "it ends after"), (1000, "header claims"), (0, "cannot read")])
async def test_weights_that_are_cut_off(model, length, said):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    error = await failure(*SMALL, model=model)
    assert isinstance(error, ConfigError)
    assert str(weights) in error.message
    assert said in error.message


@pytest.mark.slow
async def test_weights_of_another_shape(model):
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "intermediate_size": 2 * settings["intermediate_size"]}))
    error = await failure(*SMALL, model=model)
    assert isinstance(error, EngineError)
    assert "vLLM cannot start: " in error.message


@pytest.mark.slow
async def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        events = f'{{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:{port}"}}'
        error = await failure(*SMALL, "--kv-events-config", events)
    assert isinstance(error, EngineError)
    assert "Address already in use" in error.message


async def test_starts_at_once_take_turns_and_change_nothing_for_good():
    before = dict(os.environ), os.fstat(1), os.fstat(2)
    errors = await asyncio.gather(*(failure(flag) for flag in ("--blok-size", "--dtpye", "--sede")))
    assert [error.hint for error in errors] == [
        f"did you mean {flag}?" for flag in ("--block-size", "--dtype", "--seed")
    ]
    assert (dict(os.environ), os.fstat(1), os.fstat(2)) == before


async def test_a_start_that_hangs_is_ended_after_its_limit(model):
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")  # whoever opens it waits for a writer that never comes
    error = await failure(*SMALL, "--engine-start-timeout-seconds", "20", model=model)
    assert isinstance(error, EngineError)
    assert "did not start within 20 s" in error.message
    assert "--engine-start-timeout-seconds" in (error.hint or "")
