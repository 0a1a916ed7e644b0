"""A blocked event loop ends the process, with the stack that blocks it; a free one does not."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import asyncio, time
from dynamo.testing.watchdog import watchdog

def hog():
    time.sleep({hog})

async def main():
    async with watchdog({limit}):
        await asyncio.sleep(0)
        hog()
    print("done")

asyncio.run(main())
"""


def _run(hog: float, limit: float) -> subprocess.CompletedProcess[str]:
    program = _PROGRAM.format(hog=hog, limit=limit)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_a_blocked_loop_ends_the_process_and_shows_where() -> None:
    done = _run(hog=50, limit=0.5)
    assert done.returncode == 1
    assert "in hog" in done.stderr
    assert "done" not in done.stdout


def test_a_pause_within_the_limit_is_nothing() -> None:
    done = _run(hog=0.05, limit=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
