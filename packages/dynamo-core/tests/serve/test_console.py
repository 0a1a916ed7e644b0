import contextlib
import io
import os
import threading

from dynamo.serve.console import Console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_when_not_a_terminal():
    stream = io.StringIO()
    console = Console(stream)
    console.status("waiting for worker")
    console.line("frontend", "listening")
    console.line("worker-1", "loading")
    console.status("")
    console.detail("not shown")
    console.close()
    console.close()
    assert stream.getvalue() == "serve | waiting for worker\nfrontend | listening\nworker-1 | loading\n"


def test_labels_are_aligned_once_known():
    stream = io.StringIO()
    console = Console(stream, verbose=True)
    console.line("frontend", "one")
    console.line("w", "two")
    console.detail("three")
    console.close()
    assert stream.getvalue() == "frontend | one\nw        | two\nserve    | three\n"


def test_terminal_has_colours_and_a_status_line_below_the_log(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    console = Console(stream)
    console.status("waiting for worker")
    console.line("worker", "loading")
    console.status("")
    console.close()
    written = stream.getvalue()
    assert "\r\x1b[K⠋ waiting for worker (0 s)\r\x1b[K\x1b[33mworker |\x1b[0m loading\n" in written
    assert written.endswith("\r\x1b[K")


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    console = Console(stream)
    console.line("worker", "loading")
    console.close()
    assert "\x1b[3" not in stream.getvalue()


def test_a_reader_that_left_does_not_stop_us():
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    console = Console(stream)
    for _ in range(1000):
        console.line("worker", "x" * 1000)
    console.close()
    assert not console._thread.is_alive()
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_paused_terminal_blocks_nobody_and_says_what_was_lost():
    class Paused(io.StringIO):
        resumed = threading.Event()

        def write(self, text):
            self.resumed.wait()
            return super().write(text)

    stream = Paused()
    console = Console(stream)
    for number in range(20_000):
        console.line("worker", f"line {number}")
    stream.resumed.set()
    console.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "worker | line 0"
    shown = len(lines) - 1
    assert lines[-1] == f"serve  | {20_000 - shown} lines were dropped: the terminal was too slow"
    assert 10_000 <= shown < 10_010
