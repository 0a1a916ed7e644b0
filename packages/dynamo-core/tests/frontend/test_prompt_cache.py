"""Chats that share their beginnings: what the cache of tokenized prefixes may change is the time, and nothing else."""

from __future__ import annotations

import pytest

LONG = "The quick brown fox jumps over the lazy dog. " * 60


def _chat(turns: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": LONG}]
    for turn in range(turns):
        messages += [{"role": "user", "content": f"{turn} {LONG}"}, {"role": "assistant", "content": f"Answer {turn}."}]
    return [*messages, {"role": "user", "content": "And now?"}]


async def _ids(deployment, messages) -> list[int]:
    body = {"model": "echo", "messages": messages}
    return (await deployment.client.post("/tokenize", json=body)).json()["tokens"]


async def test_the_next_turn_has_the_ids_that_it_has_without_the_cache(make_deployment) -> None:
    worker = {"backend": "echo", "argv": ["--max-model-len", "32768"]}
    cached = await make_deployment(worker)
    await cached.serves("echo")
    plain = await make_deployment(worker, tokenizer_cache_mib=0)
    await plain.serves("echo")
    for turns in (1, 2, 3, 2):
        assert await _ids(cached, _chat(turns)) == await _ids(plain, _chat(turns))
    assert len(cached.frontend.models.get("echo").prefixes) > 3
    assert len(plain.frontend.models.get("echo").prefixes) == 0


@pytest.mark.parametrize("mode", ["round-robin", "kv"])
async def test_answers_do_not_depend_on_what_was_sent_before(make_deployment, mode) -> None:
    deployment = await make_deployment(
        {"backend": "echo", "argv": ["--max-model-len", "32768"]}, router={"router_mode": mode}
    )
    await deployment.serves("echo")
    answers = []
    for turns, salt in ((2, None), (2, None), (1, "a"), (2, "b"), (2, None)):
        body = {"model": "echo", "messages": _chat(turns), "max_tokens": 3000, "cache_salt": salt}
        answer = (await deployment.client.post("/v1/chat/completions", json=body)).json()
        answers.append((turns, answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]))
    two = [answer for answer in answers if answer[0] == 2]
    assert all(answer == two[0] for answer in two)
    assert LONG.strip() in two[0][1]
