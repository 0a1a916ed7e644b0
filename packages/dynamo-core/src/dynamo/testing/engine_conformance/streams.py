"""What start() returns, and the shape of every stream. Nearly all other checks build on these."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

from dynamo.protocols.engine import EngineConfig, KvEventSource, LoadSource, LoraHost
from dynamo.protocols.llm import FinishReason
from dynamo.testing.engine_conformance.check import Checks, expect, fail
from dynamo.testing.engine_conformance.driver import EngineDriver

__all__ = ["WELL_FORMED", "checks"]

#: What a check needs that reads whole streams.
WELL_FORMED = ("stream.finish", "stream.deltas")

checks = Checks()


@checks.add("config")
async def config_is_sane(engine: EngineDriver) -> None:
    """EngineConfig names the model, its context length and its block size, and agrees with the engine's methods."""
    config = engine.config
    expect(bool(config.model), "the model has no name", "set EngineConfig.model to the name that clients use")
    for name in ("context_length_tokens", "block_size_tokens", "dp_size"):
        value = getattr(config, name)
        expect(value >= 1, f"{name} is {value}", f"set EngineConfig.{name}")
    if config.model_directory is not None:
        path = config.model_directory / "tokenizer.json"
        expect(
            path.is_file(), f"there is no {path}", "model_directory holds tokenizer.json and config.json, or is None"
        )
    expect(bool(config.capabilities.modes), "capabilities.modes is empty", "name at least the aggregated mode")
    _capabilities_have_methods(engine, config)


def _capabilities_have_methods(engine: EngineDriver, config: EngineConfig) -> None:
    declared = config.capabilities
    for name, flag, protocol in (
        ("kv_events", declared.kv_events, KvEventSource),
        ("load", declared.load, LoadSource),
        ("lora", declared.lora, LoraHost),
    ):
        expect(
            not flag or isinstance(engine.engine, protocol),
            f"capability {name} is declared, but the engine has not the methods of {protocol.__name__}",
            f"implement dynamo.protocols.engine.{protocol.__name__}, or do not declare {name}",
        )
    if declared.kv_events or declared.load:
        expect(config.total_kv_blocks >= 1, "total_kv_blocks is 0", "set EngineConfig.total_kv_blocks")


@checks.add("stream.finish")
async def finishes_once(engine: EngineDriver) -> None:
    """Exactly one output of a stream, the last, has a finish_reason."""
    outputs = (await engine.run(engine.request(max_tokens=8))).outputs
    finished = [number for number, output in enumerate(outputs) if output.finish_reason is not None]
    if not finished:
        fail(
            f"the stream ended after {len(outputs)} outputs, none of which has a finish_reason",
            "give the last output a finish_reason; without it the stream counts as lost (StreamIncomplete)",
        )
    if len(finished) > 1:
        fail(f"outputs {finished} of {len(outputs)} have a finish_reason", "end the stream with the first one")
    if finished[0] != len(outputs) - 1:
        fail(f"output {finished[0]} has the finish_reason and {len(outputs) - 1 - finished[0]} follow", "put it last")
    reason = outputs[-1].finish_reason
    expect(reason in get_args(FinishReason), f"finish_reason is {reason!r}", f"use one of {get_args(FinishReason)}")


@checks.add("stream.deltas", after=["stream.finish"])
async def streams_new_tokens_only(engine: EngineDriver) -> None:
    """Each output carries only the new token ids, as a list of integers."""
    stream = await engine.run(engine.request(max_tokens=8))
    parts = [output.token_ids for output in stream.outputs if output.token_ids]
    expect(bool(parts), "no output has token ids", "put the new ids into LLMEngineOutput.token_ids")
    for part in parts:
        expect(
            isinstance(part, list) and all(isinstance(token, int) and token >= 0 for token in part),
            f"token_ids is {part!r}",
            "make it a list of non-negative Python integers",
        )
    cumulative = all(after[: len(before)] == before for before, after in pairwise(parts))
    expect(
        not (cumulative and len(parts) > 1 and len(stream.ids) > 8),
        f"each output repeats the ids of the one before it: {parts[0]} and then {parts[1] if len(parts) > 1 else []}",
        "send only what is new since the last output",
    )


@checks.add("stream.steps", after=["stream.finish"])
async def steps_grow(engine: EngineDriver) -> None:
    """The step of an output never goes back."""
    steps = [output.step for output in (await engine.run(engine.request(max_tokens=8))).outputs]
    expect(steps == sorted(steps), f"the steps of one stream are {steps}", "number engine steps upwards, or leave 0")


@checks.add("stream.usage", after=WELL_FORMED)
async def usage_counts(engine: EngineDriver) -> None:
    """The last output has usage: prompt tokens, as many completion tokens as ids were streamed, cached <= prompt."""
    prompt = engine.prompt()
    stream = await engine.run(engine.request(prompt, max_tokens=5))
    usage = stream.outputs[-1].usage
    if usage is None:
        fail("the last output has no usage", "set LLMEngineOutput.usage together with finish_reason")
    for name, seen, expected in (
        ("prompt_tokens", usage.prompt_tokens, len(prompt)),
        ("completion_tokens", usage.completion_tokens, len(stream.ids)),
    ):
        expect(seen == expected, f"{name} is {seen}; it should be {expected}", f"count {name} of this request only")
    expect(
        0 <= usage.cached_tokens <= len(prompt),
        f"cached_tokens is {usage.cached_tokens} of a prompt of {len(prompt)}",
        "count prompt tokens whose KV was reused, never more than the prompt has",
    )
