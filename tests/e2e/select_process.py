"""The select service as a process, and what a client asks it."""

from __future__ import annotations

from pathlib import Path

import httpx

from dynamo.testing.servers import free_port
from tests.e2e.processes import Process


class SelectService(Process):
    """The process, and what a client asks it."""

    def __init__(self, directory: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.key = ""
        command = ["dynamo.frontend.select", "--http-host", "127.0.0.1", "--http-port", str(self.port), *flags]
        super().__init__(command, {"DYN_STATE_DIR": str(directory / "state"), **(env or {})}, directory / "select.log")

    def ready(self) -> bool:
        try:
            return self.ask("GET", "/health").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.request(method, f"http://127.0.0.1:{self.port}{path}", json=body, headers=headers, timeout=20)

    def get(self, path: str) -> dict:
        return self.ask("GET", path).raise_for_status().json()

    def post(self, path: str, body: object = None) -> dict:
        answer = self.ask("POST", path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()
