"""What shows that the parameters of ``POST /v1/completions`` work."""

from __future__ import annotations

from tests.e2e.parameter_effects.api import COMPLETIONS, START, Api, Check, SharedCheck, completions
from tests.e2e.parameter_effects.sampling import HOT, limit, refused


def model(api: Api) -> None:
    assert completions.ask(api, START).body["model"] == "dynamo-demo"
    assert api.refusal(COMPLETIONS, 404, model="none", prompt="x") == "model"


def prompt(api: Api) -> None:
    """A string, strings, token ids and lists of token ids."""
    other = "1 2 3"
    expected = [completions.ask(api, text, max_tokens=8).text for text in (START, other)]
    ids = [api.post("/tokenize", prompt=text)["tokens"] for text in (START, other)]
    for several in ([START, other], ids):
        choices = api.post(COMPLETIONS, prompt=several, max_tokens=8, temperature=0)["choices"]
        assert [(choice["index"], choice["text"]) for choice in choices] == list(enumerate(expected))
    assert completions.ask(api, prompt=ids[0], max_tokens=8).text == expected[0]
    assert api.refusal(COMPLETIONS, prompt=["a", 1]) == "prompt"


def n(api: Api) -> None:
    body = api.post(COMPLETIONS, prompt=START, **HOT, max_tokens=8, seed=3, n=3)
    texts = [choice["text"] for choice in body["choices"]]
    assert len(set(texts)) == 3
    assert texts[1] == completions.ask(api, START, **HOT, max_tokens=8, seed=4).text


def stream(api: Api) -> None:
    events = api.events(COMPLETIONS, prompt=START, max_tokens=8, temperature=0)
    assert "".join(event["choices"][0]["text"] for event in events) == completions.ask(api, START, max_tokens=8).text
    assert {event["object"] for event in events} == {"text_completion"}
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def stream_options(api: Api) -> None:
    options = {"include_usage": True}
    events = api.events(COMPLETIONS, prompt=START, max_tokens=8, stream_options=options)
    assert (events[-1]["choices"], events[-1]["usage"]["completion_tokens"]) == ([], 8)


def logprobs(api: Api) -> None:
    found = completions.ask(api, START, max_tokens=4, logprobs=2).body["choices"][0]["logprobs"]
    assert [len(found[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [4] * 4
    assert all(len(top) == 2 for top in found["top_logprobs"])


def echo(api: Api) -> None:
    plain = completions.ask(api, START, max_tokens=4)
    echoed = completions.ask(api, START, max_tokens=4, echo=True, logprobs=1)
    assert echoed.text == START + plain.text
    values = echoed.body["choices"][0]["logprobs"]["token_logprobs"]
    assert values[0] is None
    assert len(values) == echoed.body["usage"]["prompt_tokens"] + 4


def best_of(api: Api) -> None:
    assert len(api.post(COMPLETIONS, prompt=START, max_tokens=2, n=2, best_of=2)["choices"]) == 2
    assert api.refusal(COMPLETIONS, prompt=START, best_of=2) == "best_of"


CHECKS: dict[str, Check] = {
    "model": model,
    "prompt": prompt,
    "n": n,
    "stream": stream,
    "stream_options": stream_options,
    "logprobs": logprobs,
    "echo": echo,
    "best_of": best_of,
}
SHARED: dict[str, SharedCheck] = {"max_tokens": limit, "suffix": refused("suffix", "the end")}
