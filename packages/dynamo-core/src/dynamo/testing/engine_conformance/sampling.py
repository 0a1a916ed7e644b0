"""Equal requests give equal tokens: alone, with a seed, in a crowd, and on another worker; logprobs fit the tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dynamo.protocols.llm import SamplingOptions, TokenLogprob
from dynamo.testing.engine_conformance.agreement import disagreement
from dynamo.testing.engine_conformance.check import Checks, expect, skip
from dynamo.testing.engine_conformance.driver import GREEDY, EngineDriver
from dynamo.testing.engine_conformance.limits import find_stop_id
from dynamo.testing.engine_conformance.streams import WELL_FORMED

__all__ = ["checks"]

_CROWD = 32
_TOP = 3
_ROUNDING = 1e-4

checks = Checks()


@checks.add("determinism.greedy", after=[*WELL_FORMED, "limits.max_tokens"])
async def greedy_repeats(engine: EngineDriver) -> None:
    """A greedy request (temperature 0) gives the same ids every time."""
    exact = engine.config.capabilities.batch_invariant
    for _ in range(3):
        prompt = engine.prompt()
        # Salts keep the prefix cache out of it: both runs compute the same.
        first = await engine.greedy(prompt, max_tokens=16, cache_salt=f"{prompt[:4]}-1")
        again = await engine.greedy(prompt, max_tokens=16, cache_salt=f"{prompt[:4]}-2")
        difference = disagreement(first, again.ids, exact=exact)
        expect(
            difference is None,
            f"the same greedy request differed: {difference}",
            "take the likeliest token when sampling.temperature is 0",
        )


@checks.add("determinism.seed", after=["determinism.greedy"])
async def seeds_repeat(engine: EngineDriver) -> None:
    """A sampled request gives the same ids every time when it has a seed."""
    prompt = engine.prompt()
    sampling = SamplingOptions(temperature=1.0, seed=1234)
    streams = [
        await engine.run(engine.request(prompt, max_tokens=16, sampling=sampling, cache_salt=f"{prompt[:4]}-{number}"))
        for number in range(2)
    ]
    difference = disagreement(streams[0], streams[1].ids, exact=True)
    expect(
        difference is None,
        f"two runs with seed 1234 differed: {difference}",
        "draw from a random generator of the request's own, seeded with sampling.seed",
    )


@checks.add("logprobs.tokens", needs=["logprobs"], after=["determinism.greedy"])
async def logprobs_fit_the_tokens(engine: EngineDriver) -> None:
    """When asked for, each new id has its logprob, not above 0, and so many of the likeliest ids, likeliest first."""
    plain = await engine.run(engine.request())
    expect(not plain.logprobs, "logprobs came without being asked for", "leave logprobs None unless sampling.logprobs")
    for asked in (0, _TOP):
        stream = await engine.run(engine.request(sampling=SamplingOptions(temperature=0.0, logprobs=asked)))
        for output in stream.outputs:
            entries = output.logprobs or []
            expect(
                [entry.token_id for entry in entries] == output.token_ids,
                f"output has ids {output.token_ids} and logprobs of {[entry.token_id for entry in entries]}",
                "give one TokenLogprob for each new id, in order",
            )
            _entries_are_sound(entries, asked)
            for entry in entries:
                expect(
                    not entry.top or abs(entry.top[0][1] - entry.logprob) <= _ROUNDING,
                    f"greedy chose an id of logprob {entry.logprob}; the likeliest has {entry.top[:1]}",
                    "report the logprob of the sampled id, from the same distribution as the likeliest ones",
                )


def _entries_are_sound(entries: Sequence[TokenLogprob], asked: int) -> None:
    for entry in entries:
        expect(entry.logprob <= _ROUNDING, f"logprob is {entry.logprob}", "logprobs are natural logs, never above 0")
        expect(
            len(entry.top) == asked,
            f"{len(entry.top)} likeliest ids came for logprobs={asked}",
            "give exactly sampling.logprobs of them in `top`",
        )
        values = [value for _, value in entry.top]
        expect(
            values == sorted(values, reverse=True), f"`top` is not sorted: {entry.top}", "put the likeliest id first"
        )


@checks.add("logprobs.prompt", needs=["logprobs"], after=WELL_FORMED)
async def prompt_logprobs_fit_the_prompt(engine: EngineDriver) -> None:
    """prompt_logprobs come with the first output, one per prompt id, None for the first; also for a cached prompt."""
    prompt = engine.prompt()
    for time in ("first", "second"):
        sampling = SamplingOptions(temperature=0.0, prompt_logprobs=1)
        outputs = (await engine.run(engine.request(prompt, sampling=sampling))).outputs
        entries = outputs[0].prompt_logprobs or []
        ids = [entry.token_id if entry is not None else None for entry in entries]
        expect(
            ids == [None, *prompt[1:]],
            f"the {time} time {len(ids)} entries came with the first output, for a prompt of {len(prompt)} ids",
            "give None and then the logprob of each prompt id; compute what the prefix cache would skip",
        )
        _entries_are_sound([entry for entry in entries if entry is not None], 1)
        repeated = any(output.prompt_logprobs is not None for output in outputs[1:])
        expect(not repeated, "later outputs repeat prompt_logprobs", "send them with the first output only")


@checks.add("concurrency", after=["determinism.greedy", "load.counts"])
async def a_crowd_changes_nothing(engine: EngineDriver) -> str | None:
    """Requests served together give the ids that each gives alone (without batch_invariant: up to a close call)."""
    exact = engine.config.capabilities.batch_invariant
    if not exact and not engine.config.capabilities.logprobs:
        skip("without batch_invariant and logprobs nobody can tell a close call from an error")
    prompts = [engine.prompt() for _ in range(_CROWD)]
    alone = [await engine.greedy(prompt, max_tokens=16, cache_salt="alone") for prompt in prompts]
    crowd = await asyncio.gather(*(engine.greedy(prompt, max_tokens=16) for prompt in prompts))
    for number, (expected, got) in enumerate(zip(alone, crowd, strict=True)):
        difference = disagreement(expected, got.ids, exact=exact)
        expect(
            difference is None,
            f"stream {number} of {_CROWD} differs from its run alone: {difference}",
            "keep the requests of a batch apart; declare batch_invariant only if ids never depend on the batch",
        )
    return f"{_CROWD} streams" + ("" if exact else ", up to the first close call")


@checks.add("resume.tokens", needs=["resume"], after=["determinism.greedy"])
async def resumes_a_stream(engine: EngineDriver) -> None:
    """A stream with prior_output_tokens goes on with the ids that would have come next; max_tokens counts new ids."""
    prompt = engine.prompt()
    whole = await engine.greedy(prompt, max_tokens=12)
    done = whole.ids[:5]
    rest = await engine.greedy(prompt + done, prior_output_tokens=5, max_tokens=7)
    difference = disagreement(whole, done + rest.ids)
    expect(
        difference is None,
        f"continued after 5 of 12 ids: {difference}",
        "treat the last prior_output_tokens ids as this stream's own output",
    )


@checks.add("resume.usage", needs=["resume"], after=["resume.tokens", "stream.usage"])
async def resumed_usage_counts(engine: EngineDriver) -> None:
    """In the usage of a resumed stream prompt_tokens is the client's prompt and completion_tokens the new ids."""
    prompt = engine.prompt()
    rest = await engine.run(engine.request([*prompt, *engine.prompt(5)], prior_output_tokens=5, max_tokens=7))
    usage = (rest.usage.prompt_tokens, rest.usage.completion_tokens)
    expect(
        usage == (len(prompt), 7),
        f"usage is {usage[0]} prompt and {usage[1]} completion tokens; it should be {len(prompt)} and 7",
        "prompt_tokens is len(token_ids) - prior_output_tokens; completion_tokens counts new ids only",
    )


@checks.add("resume.min_tokens", needs=["resume"], after=["resume.tokens", "limits.min_tokens"])
async def min_tokens_count_prior_output(engine: EngineDriver) -> None:
    """min_tokens counts the output of the earlier worker."""
    stop = await find_stop_id(engine, lowest=4)
    done = stop.stream.ids[:2]
    rest = await engine.run(
        engine.request(
            stop.prompt + done,
            prior_output_tokens=2,
            max_tokens=20,
            min_tokens=stop.position,
            stop_token_ids=[stop.token],
            sampling=GREEDY,
        )
    )
    expect(
        disagreement(stop.stream, done + rest.ids + stop.stream.ids[stop.position :]) is None,
        f"with min_tokens={stop.position} and 2 earlier ids, {len(rest.ids)} new ids came before the stop id",
        "compare min_tokens with prior_output_tokens + new ids",
    )
