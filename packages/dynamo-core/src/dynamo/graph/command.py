"""What the main container of a service runs, for processes and for pods alike.

Defaults follow the component type; a service that gives its own command gets nothing added.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from dynamo.graph.pod import Container
from dynamo.graph.service import WORKER_TYPES, ServiceSpec

__all__ = ["container_command", "expand", "main_container"]

_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ash"})
_REFERENCE = re.compile(r"\$(?:\$|\(([^()]*)\))")


def main_container(service: ServiceSpec) -> Container:
    """The main container of `service`; an empty one if it says nothing about it."""
    pod = service.extra_pod_spec
    return (pod.main_container if pod else None) or Container()


def container_command(service: ServiceSpec, backend_framework: str | None = None) -> tuple[list[str], list[str]]:
    """``command`` and ``args`` of the main container, defaults filled in; both empty if nothing says what to run.

    A shell runs only the first of its arguments; where that is a single word, the command was split by mistake and
    is put together again.
    """
    main = main_container(service)
    if main.command:
        return list(main.command), _shell_script(main.command, main.args)
    flags_only = bool(main.args) and main.args[0].startswith("-") and main.args[0] != "-m"
    if service.role == "frontend":
        if flags_only or not main.args:
            return ["python3"], ["-m", "dynamo.frontend", *main.args]
        return ["python3"], list(main.args)
    if backend_framework and service.role in WORKER_TYPES and (flags_only or not main.args):
        return ["python3"], ["-m", f"dynamo.{backend_framework}", *main.args]
    if main.args and main.args[0] == "-m":
        return ["python3"], list(main.args)
    if main.args:
        shell = ["/bin/sh", "-c"]
        return shell, _shell_script(shell, main.args)
    return [], []


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` as Kubernetes does: unknown names stay as they are, ``$$`` stands for ``$``."""
    return _REFERENCE.sub(
        lambda found: "$" if found.group(1) is None else variables.get(found.group(1), found.group(0)), text
    )


def _shell_script(command: Sequence[str], args: Sequence[str]) -> list[str]:
    shell = command[0].rpartition("/")[2] in _SHELLS and command[-1].startswith("-") and command[-1].endswith("c")
    if shell and len(args) > 1 and not args[0].split()[1:]:
        return [" ".join(_quoted(argument) for argument in args)]
    return list(args)


def _quoted(argument: str) -> str:
    if "$" in argument:  # the shell is to replace variables
        return '"' + argument.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return shlex.quote(argument)
