"""Starts one replica: waits for a byte on stdin, then becomes the command.

`dynamo.serve.process` runs this file, not the command itself, and writes the byte once the guardian knows the process
group. If ``dynamo serve`` is killed in between, stdin ends and the command is never started: there is no moment at
which a process can be orphaned. Standard library only, run with ``-I -S``: it costs about 10 ms.
"""

import os
import sys

__all__ = ["EXIT_CANNOT_START", "main"]

#: Shells' code for "the command cannot be run".
EXIT_CANNOT_START = 126


def main() -> None:
    """Become ``sys.argv[1:]`` with an empty stdin."""
    argv = sys.argv[1:]
    if os.read(0, 1) == b"":
        sys.exit(EXIT_CANNOT_START)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - running the given command is the purpose
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]}: {error.strerror}\n")
        sys.exit(EXIT_CANNOT_START)


if __name__ == "__main__":
    main()
