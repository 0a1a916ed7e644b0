"""Real etcd and NATS servers for tests: on free ports, in directories of their own, ended with their test.

::

    with EtcdServer() as etcd:
        discovery = create_discovery(etcd.url)
        etcd.kill()      # SIGKILL
        etcd.start()     # the same port, the same data
        etcd.pause()     # SIGSTOP
        etcd.resume()

Used by the tests of the core and of backends; any test framework will do. Everything here blocks, for about a second
at most when all is well. Only what was started here is ever signalled.
"""

from __future__ import annotations

import abc
import contextlib
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Self

from dynamo.errors import ConfigError, DynamoError
from dynamo.serve import guardian

__all__ = ["EtcdServer", "NatsServer", "Server", "find_server", "free_port"]

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.01
_PORT_ATTEMPTS = 5
_INSTALLER = "python tools/servers/install.py"


def find_server(name: str) -> Path:
    """The program `name`: in ``DYNAMO_TEST_SERVERS``, on PATH, or where ``tools/servers/install.py`` puts it.

    Raises:
        ConfigError: it is in none of these; the hint says how to get it. A test then skips with ``str(error)``.
    """
    here = Path.cwd()
    caches = [directory / ".nox" / "servers" for directory in (here, *here.parents)]
    places = [os.environ.get("DYNAMO_TEST_SERVERS", ""), os.environ.get("PATH", ""), *map(str, caches)]
    found = shutil.which(name, path=os.pathsep.join(place for place in places if place))
    if found is None:
        raise ConfigError(
            f"{name} is not on this machine",
            hint=f"get it with `{_INSTALLER} {name}`, or name its directory in DYNAMO_TEST_SERVERS",
        )
    return Path(found)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now and that no client takes by chance while its server is down.

    It lies below the range that Linux and macOS give to outgoing connections: a client that tries such a port again
    and again would in the end be connected to itself.
    """
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


class Server(abc.ABC):
    """A server process: started and ended, killed, paused, and started again at its port with its data.

    Subclasses say which program runs, with which arguments, and what it logs once it serves.
    """

    program: str
    ready_text: bytes

    def __init__(
        self, directory: Path | None = None, *, port: int | None = None, arguments: Sequence[str] = ()
    ) -> None:
        """`directory` None: a temporary one; `port` None: a free one; `arguments` go to the program.

        Raises:
            ConfigError: the program is not on this machine.
        """
        self._executable = find_server(self.program)
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"{self.program}-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._choose_port = port is None
        self.port = port or free_port()
        self.arguments = list(arguments)
        """Further arguments of the program, from its next start on."""
        self._process: subprocess.Popen[bytes] | None = None
        self._guardian: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What the server wrote, over all its starts."""
        return self.directory / "server.log"

    @property
    def data(self) -> Path:
        """The server's data directory."""
        return self.directory / "data"

    @property
    def running(self) -> bool:
        """Whether the process lives (a paused one does)."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start, and wait until the server serves. Another start uses the same port and data.

        Raises:
            DynamoError: it ended or did not get ready; the message has what it logged.
        """
        if self.running:
            return
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            try:
                self._launch()
            except DynamoError as error:
                if not (self._choose_port and attempts_left and "address already in use" in error.message):
                    raise
                self.port = free_port()
            else:
                self._choose_port = False  # from now on it is what clients know
                return

    def stop(self) -> None:
        """End it in good order; killed if that takes too long. Idempotent."""
        if self._process is not None:
            self.resume()
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it with SIGKILL. Idempotent."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait(_STOP_SECONDS)
            if self._guardian is not None:
                self._guardian.communicate(f"-{self._process.pid}\n".encode(), _STOP_SECONDS)
            self._process = self._guardian = None

    def pause(self) -> None:
        """Hang it: SIGSTOP, and wait until it has stopped."""
        if self._process is not None and self.running:
            self._signal(signal.SIGSTOP)
            os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Forget all data; only while the server is down."""
        if self.running:
            raise ConfigError(f"{self.program} runs; stop it before its data is removed")
        shutil.rmtree(self.data, ignore_errors=True)

    def close(self) -> None:
        """Stop, and remove a temporary directory."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    @abc.abstractmethod
    def _command(self) -> list[str]:
        """Arguments of the program, before those of the caller."""

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _launch(self) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)
        with self.log.open("ab") as log:
            begin = log.tell()
            self._process = subprocess.Popen(  # noqa: S603
                [str(self._executable), *self._command(), *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )
        self._guardian = _guard(self._process.pid)
        deadline = time.monotonic() + _START_SECONDS
        while self.ready_text not in (written := self._written(begin)):
            if not self.running or time.monotonic() > deadline:
                state = "did not get ready" if self.running else "ended"
                self.kill()
                # A wrong option is named at the beginning, before the help; a failure at the end.
                shown = written if len(written) < 3000 else written[:500] + b"\n...\n" + written[-2000:]
                raise DynamoError(f"{self.program} on port {self.port} {state}:\n{shown.decode(errors='replace')}")
            time.sleep(_POLL_SECONDS)

    def _written(self, begin: int) -> bytes:
        with self.log.open("rb") as log:
            log.seek(begin)
            return log.read()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


class EtcdServer(Server):
    """One etcd, a cluster of its own. Leases may be as short as one second."""

    program = "etcd"
    ready_text = b"serving client traffic"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int | None = None,
        arguments: Sequence[str] = (),
        scheme: str = "http",
    ) -> None:
        """`scheme` "https" needs the certificate options of etcd among `arguments`."""
        super().__init__(directory, port=port, arguments=arguments)
        self._scheme = scheme
        self._peer_port = free_port()

    @property
    def endpoint(self) -> str:
        """As ``ETCD_ENDPOINTS`` takes it."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """As ``--discovery-backend`` takes it."""
        return f"etcd://{self.endpoint}"

    def _command(self) -> list[str]:
        peer = f"http://127.0.0.1:{self._peer_port}"
        return [
            "--name=test",
            f"--data-dir={self.data}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=test={peer}",
            # The shortest lease is one and a half election timeouts, in whole seconds.
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--logger=zap",
        ]

    def _environment(self) -> dict[str, str]:
        # etcd takes every option from the environment too, and refuses one that is given twice.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        if platform.machine() in ("aarch64", "arm64"):
            environment["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # etcd 3.4 refuses to start there otherwise
        return environment


class NatsServer(Server):
    """One nats-server with JetStream."""

    program = "nats-server"
    ready_text = b"Server is ready"

    @property
    def url(self) -> str:
        """As ``NATS_SERVER`` takes it."""
        return f"nats://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        return ["--addr=127.0.0.1", f"--port={self.port}", "--jetstream", f"--store_dir={self.data}"]


def _guard(group: int) -> subprocess.Popen[bytes]:
    """A process that ends process group `group` when this process dies, however it dies."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", guardian.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    if process.stdin is not None:
        process.stdin.write(f"+{group}\n".encode())
        process.stdin.flush()
    return process
