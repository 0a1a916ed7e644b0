"""`dynamo serve --frontends 2`: one port, one limit per API key, and it goes on when one of them dies."""

from __future__ import annotations

import contextlib
import time

import httpx
import pytest

pytestmark = pytest.mark.e2e

KEYS = """
- {name: unlimited, key: sk-unlimited-key}
- {name: limited-0, key: sk-limited-key-0, requests_per_minute: 8}
- {name: limited-1, key: sk-limited-key-1, requests_per_minute: 8}
"""
BODY = {"model": "echo", "prompt": "hello", "max_tokens": 2}


def ask(served, key):
    """One completion over a connection of its own, which any of the frontends may get."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{served.url}/v1/completions", json=BODY, headers=headers, timeout=20)


def statuses_within_a_minute(served):
    """Of 40 requests with a limited key; with another one if a minute ended meanwhile."""
    for number in range(2):
        minute = time.time() // 60
        statuses = [ask(served, f"sk-limited-key-{number}").status_code for _ in range(40)]
        if time.time() // 60 == minute:
            return statuses
    return pytest.fail("40 requests took a minute")


def test_two_frontends_share_a_port_and_the_limits_of_api_keys(serve, tmp_path):
    (tmp_path / "keys.yaml").write_text(KEYS)
    environment = {"DYN_API_KEY_FILE": str(tmp_path / "keys.yaml")}
    served = serve("--backend", "echo", "--frontends", "2", env=environment)
    served.until(lambda: "all components are ready" in served.text(), "readiness")
    assert httpx.get(f"{served.url}/v1/models").status_code == 401

    def served_by_all():
        return all(ask(served, "sk-unlimited-key").status_code == 200 for _ in range(10))

    served.until(served_by_all, "the model at both frontends")
    statuses = statuses_within_a_minute(served)
    assert (statuses.count(200), statuses.count(429)) == (8, 32)
    frontends = served.workers("dynamo.frontend")
    assert len(frontends) == 2
    frontends[0].kill()

    def answers_again():
        with contextlib.suppress(httpx.HTTPError):
            return ask(served, "sk-unlimited-key").status_code == 200

    served.until(answers_again, "the other frontend")
    served.until(lambda: len(served.workers("dynamo.frontend")) == 2, "a new frontend")
    served.until(served_by_all, "the model at both frontends again")
