"""Processes of an engine are found, killed, and their shared memory removed; others are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dynamo.vllm.processes import EngineProcesses

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm here: Linux has it")

#: Makes a segment of shared memory, which it gives another name as the C library does with a semaphore, starts a child
#: of its own, and waits.
PROGRAM = """
import mmap, os, subprocess, sys
name = "/dev/shm/" + sys.argv[1]
segment = open(name + "-early", "w+b")
segment.truncate(4096)
view = mmap.mmap(segment.fileno(), 4096)
os.rename(name + "-early", name)
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print("ready", flush=True)
input()
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(started: list[subprocess.Popen[str]], segment: str, directory: Path) -> subprocess.Popen[str]:
    command, env = [sys.executable, "-c", PROGRAM, segment], {**os.environ, "TMPDIR": str(directory)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def segments() -> Iterator[list[Path]]:
    paths = [Path("/dev/shm", f"dynamo-test-{uuid.uuid4().hex}") for _ in range(2)]
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


def test_an_engine_is_removed_with_all_it_has_and_another_stays(started, segments, tmp_path):
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    processes = EngineProcesses(tmp_path / "mine")
    assert processes.members() == []
    start(started, segments[0].name, tmp_path / "mine")
    other = start(started, segments[1].name, tmp_path / "other")
    assert len(processes.members()) == 2
    processes.remove()
    assert processes.members() == []
    assert other.poll() is None
    assert [path.exists() for path in segments] == [False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    processes.remove()


def test_segments_of_a_process_that_died_by_itself_are_removed(started, segments, tmp_path):
    processes = EngineProcesses(tmp_path)
    process = start(started, segments[0].name, tmp_path)
    processes.note_shared_memory()
    process.kill()
    process.wait(10)
    processes.remove()
    assert not segments[0].exists()


#: A worker: starts a reaper, tells it of a segment, says that it has, and waits to be killed.
WORKER = """
import sys
from pathlib import Path
from dynamo.vllm.reaper import Reaper
reaper = Reaper(Path(sys.argv[1]))
reaper.note(sys.argv[2:])
print(reaper._process.pid, flush=True)
input()
"""


def test_the_engine_of_a_killed_worker_is_removed(started, segments, tmp_path):
    directory = tmp_path / "engine"
    directory.mkdir()
    engine = start(started, segments[0].name, directory)
    segments[1].touch()  # of a process that is killed with the worker: nothing maps it any more
    command = [sys.executable, "-c", WORKER, str(directory), segments[1].name]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started.append(worker)
    assert worker.stdout is not None
    reaper = psutil.Process(int(worker.stdout.readline()))
    worker.kill()
    engine.wait(30)
    reaper.wait(30)
    assert [segment.exists() for segment in segments] == [False, False]
    assert not directory.exists()
