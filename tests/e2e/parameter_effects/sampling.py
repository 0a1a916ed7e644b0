"""Parameters that mean the same at several endpoints, and what shows that they work."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

from tests.e2e.parameter_effects.api import MODEL, Api, Dialect, SharedCheck

#: Drawn at this temperature, two answers with different seeds are hardly ever alike.
HOT: dict[str, Any] = {"temperature": 2, "top_k": -1, "top_p": 1}
FOX, WHO = " fox", " who"
#: A grammar of each kind, and what its texts look like.
GRAMMARS: dict[str, tuple[Any, str]] = {
    "json": ({"enum": [{"a": 1}]}, r'\{"a": 1\}'),
    "regex": ("[a-f]{3}-[0-9]{4}", "[a-f]{3}-[0-9]{4}"),
    "choice": (["positive", "negative"], "positive|negative"),
    "grammar": ('start: "x" ("y" | "z")+ "."', r"x[yz]+\."),
}


def ignored(name: str, value: Any) -> SharedCheck:
    """Accepted, also by a strict frontend, and without effect."""

    def check(api: Api, dialect: Dialect) -> None:
        plain = dialect.ask(api)
        given = dialect.ask(api, **{name: value})
        assert (given.text, given.tokens, given.reason) == (plain.text, plain.tokens, plain.reason), name

    return check


def refused(name: str, value: Any) -> SharedCheck:
    """Answered with 400, and the error names it."""

    def check(api: Api, dialect: Dialect) -> None:
        limit = {dialect.limit: 5}
        assert name in (api.refusal(dialect.path, **limit, **dialect.prompt("x"), **{name: value}) or "")

    return check


def temperature(api: Api, dialect: Dialect) -> None:
    greedy = {dialect.ask(api, dialect.story, **{dialect.limit: 24}).text for _ in range(2)}
    hot = {dialect.ask(api, dialect.story, temperature=2, **{dialect.limit: 24}).text for _ in range(3)}
    assert len(greedy) == 1
    assert len(hot | greedy) > 2


def top_p(api: Api, dialect: Dialect) -> None:
    for value in (1e-6, 0):
        _keeps_the_likeliest(api, dialect, top_p=value)


def top_k(api: Api, dialect: Dialect) -> None:
    _keeps_the_likeliest(api, dialect, top_k=1)


def min_p(api: Api, dialect: Dialect) -> None:
    _keeps_the_likeliest(api, dialect, min_p=1)


def frequency_penalty(api: Api, dialect: Dialect) -> None:
    _makes_words_rarer(api, dialect, frequency_penalty=2)


def presence_penalty(api: Api, dialect: Dialect) -> None:
    _makes_words_rarer(api, dialect, presence_penalty=2)


def repetition_penalty(api: Api, dialect: Dialect) -> None:
    _makes_words_rarer(api, dialect, repetition_penalty=10)


def seed(api: Api, dialect: Dialect) -> None:
    first, again, other = (
        dialect.ask(api, dialect.story, **HOT, **{dialect.limit: 16}, seed=number) for number in (5, 5, 6)
    )
    assert first.text == again.text != other.text


def logit_bias(api: Api, dialect: Dialect) -> None:
    biased = dialect.ask(
        api, dialect.story, **{dialect.limit: 6}, ignore_eos=True, logit_bias={str(api.token_id(FOX)): 100}
    )
    assert biased.text == FOX * 6


def stop(api: Api, dialect: Dialect) -> None:
    whole = dialect.ask(api, dialect.story, **{dialect.limit: 40})
    cut = dialect.ask(api, dialect.story, **{dialect.limit: 40}, stop=["unheard of", " who "])
    assert cut.text == whole.text.split(" who ")[0] != whole.text
    assert cut.reason == "stop"
    assert cut.tokens < whole.tokens
    assert dialect.ask(api, dialect.story, **{dialect.limit: 40}, stop=" who ").text == cut.text


def stop_token_ids(api: Api, dialect: Dialect) -> None:
    whole = dialect.ask(api, dialect.story, **{dialect.limit: 40})
    cut = dialect.ask(api, dialect.story, **{dialect.limit: 40}, stop_token_ids=[api.token_id(WHO)])
    assert whole.text.startswith(cut.text)
    assert WHO not in cut.text
    assert (cut.reason, WHO in whole.text) == ("stop", True)


def ignore_eos(api: Api, dialect: Dialect) -> None:
    answer = dialect.ask(api, **{dialect.limit: 40}, ignore_eos=True)
    assert (answer.tokens, answer.reason) == (40, "length")
    assert dialect.ask(api, **{dialect.limit: 40}).tokens < 40


def min_tokens(api: Api, dialect: Dialect) -> None:
    assert dialect.ask(api).tokens < 30 <= dialect.ask(api, min_tokens=30).tokens


def limit(api: Api, dialect: Dialect) -> None:
    for most in (1, 4):
        answer = dialect.ask(api, dialect.story, **{dialect.limit: most})
        assert (answer.tokens, answer.reason) == (most, "length")


def cache_salt(api: Api, dialect: Dialect) -> None:
    keeps_apart(api, dialect, lambda salt: {"cache_salt": salt})


def keeps_apart(api: Api, dialect: Dialect, salted: Callable[[str], dict[str, Any]]) -> None:
    """The second prompt with a salt finds the blocks of the first; one with another salt does not."""
    text = f"{uuid.uuid4()}. " * 4 + dialect.story
    one, other = uuid.uuid4().hex, uuid.uuid4().hex
    cached = [
        dialect.ask(api, text, **{dialect.limit: 2}, **salted(salt)).cached > 0 for salt in (one, one, other, other)
    ]
    assert cached == [False, True, False, True]


def priority(api: Api, dialect: Dialect) -> None:
    """The deployment runs one request at a time: of two that wait, the later one with the lower number is next."""
    overtakes(api, dialect, {"priority": 5}, {"priority": -5})


def overtakes(api: Api, dialect: Dialect, later: dict[str, Any], sooner: dict[str, Any]) -> None:
    """Let requests with these fields wait, in this order, and see the second one answered first."""
    done: list[str] = []

    def wait(name: str, fields: dict[str, Any]) -> None:
        dialect.ask(api, dialect.story, **{dialect.limit: 30}, **fields)
        done.append(name)

    threads = [threading.Thread(target=wait, args=pair) for pair in (("later", later), ("sooner", sooner))]
    body = {"model": MODEL, "prompt": "1 2 3", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with api.client.stream("POST", "/v1/completions", json=body) as running:
        lines = running.iter_lines()
        next(lines)
        for number, thread in enumerate(threads, start=2):
            thread.start()
            while _in_flight(api) < number:
                assert thread.is_alive(), "it did not wait"
        del lines  # only now: with it goes the stream
    for thread in threads:
        thread.join(60)
    assert done == ["sooner", "later"]


def _in_flight(api: Api) -> float:
    lines = api.client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("dynamo_frontend_inflight_requests{"))


def structured_outputs(api: Api, dialect: Dialect) -> None:
    for kind in GRAMMARS:
        follows(api, dialect, kind, lambda value, kind=kind: {"structured_outputs": {kind: value}})
    begun = dialect.ask(api, structured_outputs={"json_object": True}, **{dialect.limit: 5})
    assert begun.text.startswith("{")


def guided(kind: str) -> SharedCheck:
    """``guided_KIND``."""

    def check(api: Api, dialect: Dialect) -> None:
        follows(api, dialect, kind, lambda value: {f"guided_{kind}": value})

    return check


def follows(api: Api, dialect: Dialect, kind: str, fields: Callable[[Any], dict[str, Any]]) -> None:
    """The answer follows a grammar that the model would not follow by itself, and one of the wrong type is refused by name."""
    value, form = GRAMMARS[kind]
    answer = dialect.ask(api, **fields(value))
    assert re.fullmatch(form, answer.text), answer.text
    assert answer.reason == "stop"
    assert (api.refusal(dialect.path, **dialect.prompt("x"), **fields([])) or "").endswith(kind)


def _keeps_the_likeliest(api: Api, dialect: Dialect, **fields: Any) -> None:
    """Truncation that leaves one candidate is greedy at any temperature."""
    greedy = dialect.ask(api, dialect.story, **{dialect.limit: 24})
    assert dialect.ask(api, dialect.story, **{dialect.limit: 24}, temperature=2, **fields).text == greedy.text


def _makes_words_rarer(api: Api, dialect: Dialect, **penalty: float) -> None:
    """A word that is pushed, so that it comes often, comes less often."""
    pushed = {"logit_bias": {str(api.token_id(FOX)): 11}, "ignore_eos": True, dialect.limit: 24}
    counts = [dialect.ask(api, dialect.story, **pushed, **fields).text.count(FOX) for fields in ({}, penalty)]
    assert counts[1] < counts[0], counts


#: What chats and completions have in common, by the names of the reference page's section "Sampling".
SAMPLING: dict[str, SharedCheck] = {
    "temperature": temperature,
    "top_p": top_p,
    "top_k": top_k,
    "min_p": min_p,
    "frequency_penalty": frequency_penalty,
    "presence_penalty": presence_penalty,
    "repetition_penalty": repetition_penalty,
    "seed": seed,
    "logit_bias": logit_bias,
    "stop": stop,
    "stop_token_ids": stop_token_ids,
    "ignore_eos": ignore_eos,
    "min_tokens": min_tokens,
    "cache_salt": cache_salt,
    "priority": priority,
    "user": ignored("user", "somebody"),
    "structured_outputs": structured_outputs,
    **{f"guided_{kind}": guided(kind) for kind in GRAMMARS},
}
