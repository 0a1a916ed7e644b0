"""When a stream ends by itself: max and min tokens, stop ids, end of sequence, context length."""

from __future__ import annotations

from typing import NamedTuple

from dynamo.errors import InvalidRequest
from dynamo.testing.engine_conformance.agreement import disagreement
from dynamo.testing.engine_conformance.check import Checks, expect, skip
from dynamo.testing.engine_conformance.driver import EngineDriver, Generation
from dynamo.testing.engine_conformance.streams import WELL_FORMED

__all__ = ["StopId", "checks", "find_stop_id"]

_ATTEMPTS = 5
_PROBE_TOKENS = 24
_SLOW_CONTEXT = 16_384

checks = Checks()


class StopId(NamedTuple):
    """A greedy stream and an id that occurs in it for the first time at `position`."""

    stream: Generation
    prompt: list[int]
    token: int
    position: int


async def find_stop_id(engine: EngineDriver, *, lowest: int = 1) -> StopId:
    """Look for an id that can end a stream at a known place, at `lowest` or later; skips the check if there is none."""
    for _ in range(_ATTEMPTS):
        prompt = engine.prompt()
        stream = await engine.greedy(prompt, max_tokens=_PROBE_TOKENS)
        for position in range(lowest, len(stream.ids)):
            if stream.ids[position] not in stream.ids[:position]:
                return StopId(stream, prompt, stream.ids[position], position)
    return skip("the model repeats itself so much that no stop id can be tried")


@checks.add("limits.max_tokens", after=WELL_FORMED)
async def max_tokens_is_exact(engine: EngineDriver) -> None:
    """With ignore_eos a stream has exactly max_tokens ids and ends with "length"; also for 1."""
    for limit in (1, 2, 7):
        stream = await engine.run(engine.request(max_tokens=limit))
        expect(
            len(stream.ids) == limit,
            f"{len(stream.ids)} ids came for max_tokens={limit}, finish_reason {stream.finish_reason!r}",
            "end the stream after exactly stop.max_tokens new ids",
        )
        expect(
            stream.finish_reason == "length",
            f"finish_reason is {stream.finish_reason!r} at max_tokens={limit}",
            'finish with "length" when max_tokens is reached',
        )


@checks.add("limits.ignore_eos", after=["limits.max_tokens"])
async def ignore_eos_goes_on(engine: EngineDriver) -> str | None:
    """A stream that ends by the model's end of sequence says "stop", without a stop_reason; ignore_eos goes past it."""
    ended = await _natural_end(engine)
    if ended is None:
        return "the model did not end by itself within the prompts tried"
    last = ended.outputs[-1]
    expect(last.stop_reason is None, f"stop_reason is {last.stop_reason}", "set it only for ids of stop_token_ids")
    prompt = ended.request.prompt().tolist()
    longer = await engine.run(engine.request(prompt, max_tokens=len(ended.ids) + 4))
    expect(
        len(longer.ids) == len(ended.ids) + 4,
        f"with ignore_eos the stream ended after {len(longer.ids)} ids ({longer.finish_reason!r})",
        "do not end at the end-of-sequence id when stop.ignore_eos is set",
    )
    return None


async def _natural_end(engine: EngineDriver) -> Generation | None:
    for _ in range(_ATTEMPTS):
        stream = await engine.run(engine.request(max_tokens=engine.long_tokens, ignore_eos=False))
        if stream.finish_reason == "stop":
            return stream
    return None


@checks.add("limits.stop_token_ids", after=["determinism.greedy"])
async def stop_ids_end_the_stream(engine: EngineDriver) -> None:
    """A stream ends with "stop" at the first of stop_token_ids; the id is left out and named as stop_reason."""
    stop = await find_stop_id(engine)
    stream = await engine.greedy(stop.prompt, max_tokens=_PROBE_TOKENS, stop_token_ids=[stop.token])
    expect(
        stop.token not in stream.ids,
        f"stop id {stop.token} is among the streamed ids",
        "leave the id that ended the stream out of token_ids",
    )
    expect(
        stream.finish_reason == "stop",
        f"{stream.finish_reason!r} after {len(stream.ids)} ids; a stop id was due after {stop.position}",
        'compare each new id with stop.stop_token_ids and finish with "stop"',
    )
    expect(
        stream.outputs[-1].stop_reason == stop.token,
        f"stop_reason is {stream.outputs[-1].stop_reason}; the id was {stop.token}",
        "set stop_reason of the last output to the id that ended the stream",
    )
    difference = disagreement(stop.stream, stream.ids + stop.stream.ids[stop.position :])
    expect(difference is None, f"before the stop id {difference}", "a stop id changes nothing before it")
    usage = stream.usage.completion_tokens
    expect(usage == len(stream.ids), f"usage counts {usage} of {len(stream.ids)} ids", "count what was streamed")


@checks.add("limits.min_tokens", after=["limits.stop_token_ids"])
async def min_tokens_are_made(engine: EngineDriver) -> None:
    """No stop id and no end of sequence ends a stream before min_tokens ids."""
    stop = await find_stop_id(engine)
    least = stop.position + 3
    fix = "do not look at stop ids and the end-of-sequence id before stop.min_tokens ids"
    stream = await engine.run(
        engine.request(stop.prompt, max_tokens=least + 8, min_tokens=least, stop_token_ids=[stop.token])
    )
    expect(len(stream.ids) >= least, f"a stop id ended it after {len(stream.ids)} of {least} ids", fix)
    ended = await _natural_end(engine)
    if ended is None:
        return
    least = len(ended.ids) + 3
    prompt = ended.request.prompt().tolist()
    longer = await engine.run(engine.request(prompt, max_tokens=least, min_tokens=least, ignore_eos=False))
    expect(len(longer.ids) >= least, f"the end of sequence ended it after {len(longer.ids)} of {least} ids", fix)


@checks.add("limits.context", after=["config", "limits.max_tokens"])
async def context_is_the_limit(engine: EngineDriver) -> None:
    """Prompt and output together never exceed the context length: the stream ends with "length", or is refused."""
    context = engine.config.context_length_tokens
    if context > _SLOW_CONTEXT:
        skip(f"a context of {context} tokens takes long to fill; start the engine with at most {_SLOW_CONTEXT}")
    for max_tokens in (None, 64):
        request = engine.request(engine.prompt(context - 8), max_tokens=max_tokens)
        try:
            stream = await engine.run(request)
        except InvalidRequest as refusal:
            expect(
                refusal.reason == "context_length_exceeded",
                f"refused with reason {refusal.reason!r}",
                'raise InvalidRequest(..., reason="context_length_exceeded")',
            )
            continue
        total = context - 8 + len(stream.ids)
        expect(
            stream.finish_reason == "length" and context - 8 < total <= context,
            f"prompt and output had {total} tokens of a context of {context}, finish_reason {stream.finish_reason!r}",
            'end the stream with "length" when the context is full',
        )
