"""Checks of the machine: GPUs, memory, limits, the port, and directories that must be writable."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dynamo.cli.checks.finding import Finding, fail, ok, warn

__all__ = [
    "check_file_descriptors",
    "check_gpus",
    "check_memory",
    "check_model_cache",
    "check_port",
    "check_shared_memory",
    "check_state_directory",
]

_GIB = 1 << 30
_LEAST_MEMORY_BYTES = 2 * _GIB
#: Tensor-parallel engines and the shm KV transport put whole blocks there; containers start with 64 MiB.
_LEAST_SHARED_MEMORY_BYTES = 1 * _GIB
#: A connection per client and per worker.
_LEAST_DESCRIPTORS = 4096
_DEFAULT_PORT = 8000


def check_gpus() -> Iterator[Finding]:
    """NVIDIA GPUs, as the driver lists them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield ok("gpu", "no nvidia-smi: CPU only")
        return
    fix = "check the NVIDIA driver; in a container, start it with the GPUs (--gpus all)"
    try:
        answer = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        yield warn("gpu", "nvidia-smi does not answer within 10 s", fix)
        return
    except OSError as error:
        yield warn("gpu", f"nvidia-smi cannot be run: {error.strerror}", fix)
        return
    gpus = [line.partition(" (UUID")[0] for line in answer.stdout.splitlines() if line.startswith("GPU ")]
    if answer.returncode == 0 and gpus:
        yield ok("gpu", "; ".join(gpus))
    else:
        yield warn("gpu", f"nvidia-smi finds none: {(answer.stderr or answer.stdout).strip()[:200]}", fix)


def check_memory() -> Iterator[Finding]:
    """Memory that a new process can have."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = _available_bytes() or total
    found = f"{available / _GIB:.1f} GiB available of {total / _GIB:.1f} GiB"
    if available < _LEAST_MEMORY_BYTES:
        yield warn("memory", found, "the demo model needs 1 GiB, most models more: end other programs")
    else:
        yield ok("memory", found)


def _available_bytes() -> int | None:
    """From Linux; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def check_shared_memory() -> Iterator[Finding]:
    """Size of /dev/shm, which engines on several GPUs and the shm KV transport need."""
    directory = Path("/dev/shm")  # noqa: S108 - the tmpfs itself is looked at
    if not directory.is_dir():
        yield ok("shared memory", "no /dev/shm on this system")
        return
    size = shutil.disk_usage(directory)
    found = f"{size.free / _GIB:.1f} GiB free of {size.total / _GIB:.1f} GiB in {directory}"
    if size.free < _LEAST_SHARED_MEMORY_BYTES:
        yield warn("shared memory", found, "in a container, start it with --shm-size=8g or --ipc=host")
    else:
        yield ok("shared memory", found)


def check_file_descriptors() -> Iterator[Finding]:
    """Open files that a process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{_limit(soft)} ({_limit(hard)} at most)"
    if soft != resource.RLIM_INFINITY and soft < _LEAST_DESCRIPTORS:
        yield warn("file descriptors", found, "many clients need more: `ulimit -n 65536` before you start")
    else:
        yield ok("file descriptors", found)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def check_port() -> Iterator[Finding]:
    """The default port of the OpenAI API."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _DEFAULT_PORT))
        except OSError as error:
            fix = f"`lsof -i :{_DEFAULT_PORT}` names who uses it; or `dynamo serve --port 8001`"
            yield warn("port", f"{_DEFAULT_PORT}: {(error.strerror or str(error)).lower()}", fix)
            return
    yield ok("port", f"{_DEFAULT_PORT} is free")


def check_state_directory() -> Iterator[Finding]:
    """Where processes of this machine find each other."""
    from dynamo.runtime.settings import default_state_directory

    directory = Path(os.environ.get("DYN_STATE_DIR") or default_state_directory())
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        found = f"{directory} cannot be written: {error.strerror}"
        yield fail("state directory", found, "set DYN_STATE_DIR to a directory of yours")
        return
    yield ok("state directory", f"{directory} is writable")


def check_model_cache() -> Iterator[Finding]:
    """Where models from Hugging Face are kept, and whether they can be fetched."""
    home = os.environ.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    models = [path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*")]
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    found = f"{len(models)} models in {cache}, {shutil.disk_usage(existing).free / _GIB:.0f} GiB free"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        yield warn("model cache", f"{found}; offline", "unset HF_HUB_OFFLINE to download models")
    elif not os.access(existing, os.W_OK):
        yield warn("model cache", f"{found}; not writable", "set HF_HOME to a directory of yours")
    else:
        yield ok("model cache", found)
