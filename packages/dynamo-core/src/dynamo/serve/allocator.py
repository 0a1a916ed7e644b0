"""Hands out free ports and GPUs of this machine to replicas."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence

from dynamo.errors import ConfigError

__all__ = ["GpuAllocator", "check_port_free", "free_port", "visible_gpus"]

_PORT_HINTS = {
    errno.EADDRINUSE: (
        "--port",
        "choose another with --port (0 takes a free one), or stop what uses it: `lsof -i :{port}` names it",
    ),
    errno.EACCES: ("--port", "ports below 1024 are for root: choose another with --port"),
}


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now.

    Another process may take it before the replica does; the replica then fails to start and is started with another.
    """
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port_free(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on; the hints name the flags of ``dynamo serve``.

    Raises:
        ConfigError: it is taken, not allowed, or `host` is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do, so that connections of a former server in TIME_WAIT do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        flag, hint = _PORT_HINTS.get(error.errno or 0, ("--host", "give an address of this machine with --host"))
        raise ConfigError(
            f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}",
            param=flag,
            hint=hint.format(port=port),
        ) from error


def visible_gpus() -> list[str]:
    """Ids of the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES spells them; blocks for a moment."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.split() if answer.returncode == 0 else []


class GpuAllocator:
    """Gives each replica GPUs of its own."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = list(devices)
        self._free = list(devices)

    def take(self, count: int, *, component: str) -> list[str]:
        """`count` GPUs, to be given back with :meth:`give_back`.

        Raises:
            ConfigError: there are not that many left.
        """
        if count > len(self._free):
            raise ConfigError(
                f"{component} needs {count} GPU{'s' if count > 1 else ''}; "
                f"{len(self._free)} of {len(self._devices)} are free on this machine",
                hint="lower its replicas or its GPU limit, or choose devices with CUDA_VISIBLE_DEVICES",
            )
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def give_back(self, devices: Sequence[str]) -> None:
        """Make `devices` free again, in the machine's order."""
        kept = {*self._free, *devices}
        self._free = [device for device in self._devices if device in kept]
