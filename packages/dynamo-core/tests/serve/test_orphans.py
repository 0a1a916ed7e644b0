"""Nothing outlives the scheduler's process, however that ends."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from dynamo.serve import guardian, launcher
from dynamo.serve.process import ChildProcess, Guardian

SCHEDULER = """
import asyncio, sys
from pathlib import Path
from dynamo.protocols.scheduling import ComponentSpec
from dynamo.serve.scheduler import LocalScheduler

async def main():
    scheduler = LocalScheduler(Path(sys.argv[1]))
    await scheduler.apply([
        ComponentSpec("worker", ("python3", sys.argv[2], "--child"), replicas=2),
        ComponentSpec("stubborn", ("python3", sys.argv[2], "--ignore-term")),
    ])
    await scheduler.wait_ready()
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def scheduler_process(tmp_path, program):
    command = [sys.executable, "-c", SCHEDULER, str(tmp_path / "state"), str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert "ready\n" in process.stdout  # reads up to this line; the lines before are the replicas' own
        yield process
        process.kill()


async def test_sigkill_of_the_scheduler_ends_all_descendants(scheduler_process, until, alive):
    family = psutil.Process(scheduler_process.pid).children(recursive=True)
    # three replicas, two of them with a child, and the guardian
    assert len(family) == 6
    scheduler_process.kill()
    await until(lambda: not any(alive(process.pid) for process in family), "all descendants end")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads signal masks from Linux's /proc")
async def test_guardian_survives_signals_to_the_group_and_is_replaced_when_killed(until, alive):
    guard = Guardian()
    await guard.start()
    pid = guard._process.pid
    assert os.getsid(pid) == pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        await until(lambda n=number: psutil.Process(pid).is_running() and _ignores(pid, n), f"{number!r} is ignored")
        os.kill(pid, number)
    sleeper = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    guard.add(sleeper.pid)
    os.kill(pid, signal.SIGKILL)
    await guard._process.wait()
    guard.discard(1)  # nobody listens: must not raise
    await guard.start()
    assert guard._process.pid != pid
    await guard.close()
    assert await asyncio.wait_for(sleeper.wait(), 10) == -signal.SIGTERM


def _ignores(pid, number):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in status if line.startswith("SigIgn"))
    return mask >> (number - 1) & 1


def test_launcher_does_not_start_what_nobody_watches(tmp_path):
    proof = tmp_path / "started"
    command = [sys.executable, "-I", "-S", launcher.__file__, "touch", str(proof)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == launcher.EXIT_CANNOT_START
    assert not proof.exists()
    assert subprocess.run(command, input=b"\n").returncode == 0
    assert proof.exists()


def test_command_starts_with_an_empty_stdin():
    command = [sys.executable, "-I", "-S", launcher.__file__, "cat"]
    assert subprocess.run(command, input=b"\nsecret", capture_output=True).stdout == b""


async def test_interrupted_start_leaves_nothing(until):
    guard = Guardian()
    start = asyncio.create_task(
        ChildProcess.start(
            ["sleep", "600"], env=os.environ, working_directory=None, guard=guard, on_line=lambda text: None
        )
    )
    before = {process.pid for process in psutil.Process().children()}
    while len(psutil.Process().children()) == len(before):
        await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await guard.close()
    await until(
        lambda: all(
            p.pid in before or p.status() == psutil.STATUS_ZOMBIE for p in psutil.Process().children(recursive=True)
        ),
        "the launcher ends",
    )


def test_guardian_ends_groups_that_ignore_sigterm(until):
    stubborn = textwrap.dedent("""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True) as process:
        process.stdout.readline()
        lines = f"+{process.pid}\n+999999999\n+{os.getpgid(0)}\n-{os.getpgid(0)}\n".encode()
        subprocess.run([sys.executable, "-I", "-S", guardian.__file__], input=lines, check=True)
        assert process.wait(10) == -signal.SIGKILL
