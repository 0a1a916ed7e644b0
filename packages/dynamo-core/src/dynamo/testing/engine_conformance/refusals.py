"""Requests that cannot be served, and how errors look to whoever sent them."""

from __future__ import annotations

import math
import time

from dynamo.errors import DynamoError, InvalidRequest
from dynamo.protocols.llm import PreprocessedRequest, SamplingOptions
from dynamo.testing.engine_conformance.check import Checks, expect, fail
from dynamo.testing.engine_conformance.driver import EngineDriver
from dynamo.testing.engine_conformance.runner import describe_exception
from dynamo.testing.engine_conformance.streams import WELL_FORMED

__all__ = ["checks", "expect_refusal", "failure_of"]

checks = Checks()


async def failure_of(engine: EngineDriver, request: PreprocessedRequest) -> Exception | None:
    """What serving `request` raises; None when it is served."""
    try:
        await engine.run(request)
    except Exception as error:  # noqa: BLE001 - the engine's own code: the kind of error is what is looked at
        return error
    return None


async def expect_refusal(engine: EngineDriver, request: PreprocessedRequest, what: str) -> InvalidRequest:
    """`request` must be refused with InvalidRequest."""
    error = await failure_of(engine, request)
    if isinstance(error, InvalidRequest):
        return error
    seen = "was served" if error is None else describe_exception(error)
    return fail(f"{what}: {seen}", "raise dynamo.errors.InvalidRequest at the first step of generate()")


@checks.add("refuse.empty_prompt")
async def refuses_an_empty_prompt(engine: EngineDriver) -> None:
    """A request without token ids is refused with InvalidRequest."""
    await expect_refusal(engine, engine.request([]), "a request without token ids")


@checks.add("refuse.context_overflow", after=["config"])
async def refuses_a_long_prompt(engine: EngineDriver) -> None:
    """A prompt beyond the context length is refused with InvalidRequest, reason context_length_exceeded."""
    length = engine.config.context_length_tokens + 1
    what = f"a prompt of {length} tokens for a context of {length - 1}"
    refusal = await expect_refusal(engine, engine.request(engine.prompt(length)), what)
    expect(
        refusal.reason == "context_length_exceeded",
        f"InvalidRequest has reason {refusal.reason!r}",
        'pass reason="context_length_exceeded": OpenAI clients look for it',
    )


@checks.add("errors.types", after=WELL_FORMED)
async def raises_its_own_kind(engine: EngineDriver) -> None:
    """Whatever a request holds, generate() serves it or raises a DynamoError, and the engine goes on serving."""
    nan = SamplingOptions(temperature=math.nan)
    odd = {
        "a token id beyond any vocabulary": engine.request([*engine.prompt(), 2**32 - 1]),
        "a temperature that is not a number": engine.request(sampling=nan),
        "a negative top_k and a top_p of 0": engine.request(sampling=SamplingOptions(top_k=-7, top_p=0.0)),
        "a logit bias for an unknown id": engine.request(sampling=SamplingOptions(logit_bias={2**31: 1.0})),
        "max_tokens of 0": engine.request(max_tokens=0),
    }
    for what, request in odd.items():
        error = await failure_of(engine, request)
        expect(
            error is None or isinstance(error, DynamoError),
            f"{what}: {describe_exception(error) if error else ''}",
            "check requests and raise InvalidRequest; map foreign exceptions to dynamo.errors where they enter",
        )
        after = await failure_of(engine, engine.request())
        if after is not None:
            fail(f"after {what} a plain request {describe_exception(after)}", "one bad request must not spoil others")


@checks.add("request.priority", after=["limits.max_tokens"])
async def accepts_priorities(engine: EngineDriver) -> None:
    """A priority, high or low, is accepted; engines without priorities ignore it."""
    for priority in (-5, 5):
        stream = await engine.run(engine.request(priority=priority, max_tokens=4))
        expect(len(stream.ids) == 4, f"priority {priority} gave {len(stream.ids)} of 4 ids", "serve it as any other")


@checks.add("request.deadline", after=WELL_FORMED)
async def late_requests_end(engine: EngineDriver) -> None:
    """A request whose deadline has passed ends soon, with an error or as cancelled; nobody waits for its answer."""
    request = engine.request(max_tokens=engine.long_tokens, deadline_unix_seconds=time.time() - 10)
    stream = engine.open(request)
    try:
        await stream.rest()
    except DynamoError:
        return
    expect(
        stream.generation.finish_reason == "cancelled",
        f"{len(stream.generation.ids)} ids were generated, finish_reason {stream.generation.finish_reason!r}",
        "look at deadline_unix_seconds before a request starts and while it runs",
    )
