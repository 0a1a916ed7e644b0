"""What processes print arrives on stderr, and its end is kept."""

from __future__ import annotations

import subprocess
import sys
import textwrap

#: Run as a process of its own: the tail takes over stdout and stderr.
PROGRAM = """
import subprocess, sys
from dynamo.vllm.output_tail import OutputTail
tail = OutputTail()
with tail:
    child = subprocess.Popen([sys.executable, "-c", {child!r}])
print("the worker's own output")
child.wait()
while {last!r} not in tail.text():
    pass
print(repr(tail.cause()))
print(tail.text().splitlines()[0])
"""


def run(child: str, last: str) -> tuple[list[str], str]:
    program = PROGRAM.format(child=textwrap.dedent(child), last=last)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines(), done.stderr


def test_the_cause_is_found_behind_its_consequences():
    child = """
        import sys
        print("loading")
        print("\\x1b[31m(EngineCore pid=7) ERROR 11-21 [core.py:9] safetensors_rust.SafetensorError: truncated\\x1b[0m")
        sys.stderr.write("RuntimeError: Engine core initialization failed. See root cause above.\\nlast words\\n")
    """
    out, err = run(child, "last words")
    assert out == ["the worker's own output", "'SafetensorError: truncated'", "  loading"]
    assert "last words" in err


def test_without_an_exception_there_is_no_cause():
    assert run("print('done, Error: none')", "none")[0][1] == "None"


def test_only_the_end_is_kept():
    out, err = run("print(*range(5000), sep='\\n')", "4999")
    assert out[2].strip() == "4980"
    assert err.count("\n") == 5000
