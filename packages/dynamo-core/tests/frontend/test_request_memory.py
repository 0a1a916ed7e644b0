"""What a request held is given back when it is over, not when the garbage collector next looks: that is seldom."""

from __future__ import annotations

import gc

import pytest

from dynamo.frontend.generation import Generation
from dynamo.runtime.http import Exchange

REQUESTS = 5


def _alive(*kinds: type) -> int:
    return sum(isinstance(thing, kinds) for thing in gc.get_objects())


async def _ask(deployment, body: dict[str, object], status: int) -> None:
    answer = await deployment.client.post(
        "/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": "Hello"}], **body}
    )
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("mode", ["round-robin", "kv"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 200),
        ({"stream": True}, 200),
        ({"n": 2}, 200),
        ({"stop": "l"}, 200),
        ({"max_tokens": 1}, 200),
        ({"max_tokens": -1}, 400),
    ],
    ids=["whole", "streamed", "choices", "stopped", "short", "refused"],
)
async def test_nothing_of_a_request_waits_for_the_garbage_collector(make_deployment, mode, body, status) -> None:
    deployment = await make_deployment({"backend": "echo"}, router={"router_mode": mode})
    await deployment.serves("echo")
    await _ask(deployment, body, status)
    gc.collect()
    gc.disable()
    try:
        before = _alive(Generation, Exchange)
        for _ in range(REQUESTS):
            await _ask(deployment, body, status)
        await deployment.until(lambda: _alive(Generation, Exchange) <= before)
    finally:
        gc.enable()
