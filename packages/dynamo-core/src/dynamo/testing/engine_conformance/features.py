"""What only some engines can do: embeddings, guided decoding, LoRA adapters."""

from __future__ import annotations

import json
import re

import numpy as np

from dynamo.errors import DynamoError, InvalidRequest
from dynamo.protocols.engine import LoraHost
from dynamo.protocols.llm import GuidedDecoding
from dynamo.testing.engine_conformance.check import Checks, expect, fail, skip
from dynamo.testing.engine_conformance.driver import EngineDriver
from dynamo.testing.engine_conformance.refusals import expect_refusal
from dynamo.testing.engine_conformance.streams import WELL_FORMED

__all__ = ["checks"]

_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
_ADAPTER = "conformance-adapter"

checks = Checks()


@checks.add("embeddings", needs=["embeddings"], after=["stream.finish"])
async def embeds(engine: EngineDriver) -> None:
    """A request with `embed` gets one finite float32 vector, the same for the same prompt, and no tokens."""
    prompts = [engine.prompt(), engine.prompt()]
    same, again, other = [await _embedding(engine, prompt) for prompt in (prompts[0], prompts[0], prompts[1])]
    expect(bool(np.isfinite(same).all()), "the vector has infinities or NaN", "check the pooling")
    expect(same.shape == other.shape, f"shapes differ: {same.shape} and {other.shape}", "give hidden_size numbers")
    expect(np.allclose(same, again, atol=1e-4), "the same prompt gave two different vectors", "embed without sampling")
    expect(not np.allclose(same, other, atol=1e-6), "different prompts gave equal vectors", "pool over the prompt")


async def _embedding(engine: EngineDriver, prompt: list[int]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    stream = await engine.run(engine.request(prompt, embed=True))
    vectors = [output.embedding for output in stream.outputs if output.embedding is not None]
    expect(len(vectors) == 1, f"{len(vectors)} outputs have an embedding", "give one, on the last output")
    expect(len(vectors[0]) % 4 == 0 and bool(vectors[0]), f"it has {len(vectors[0])} bytes", "pack it as float32")
    expect(not stream.ids, f"{len(stream.ids)} token ids came with it", "generate nothing for `embed`")
    usage = (stream.usage.prompt_tokens, stream.usage.completion_tokens)
    expect(usage == (len(prompt), 0), f"usage is {usage}", "count the prompt, and 0 completion tokens")
    return np.frombuffer(vectors[0], dtype="<f4")


@checks.add("guided", needs=["guided"], after=WELL_FORMED)
async def follows_grammars(engine: EngineDriver) -> str:
    """The text of a finished stream follows its grammar, for each kind that the engine declares."""
    kinds = [kind for kind in ("json", "json_object", "regex", "choice") if kind in engine.config.capabilities.guided]
    unfinished = []
    for kind in kinds:
        text = await _guided_text(engine, kind)
        if text is None:
            unfinished.append(kind)
        else:
            expect(_follows(kind, text), f"kind {kind!r} gave {text!r}", "mask every token that the grammar forbids")
    return ", ".join(kinds) + (f" ({', '.join(unfinished)} did not end within the limit)" if unfinished else "")


@checks.add("guided.refusal", needs=["guided"], after=["guided"])
async def refuses_bad_grammars(engine: EngineDriver) -> None:
    """A grammar that cannot be compiled is refused with InvalidRequest."""
    broken = {"json": '{"type": ', "regex": "(unclosed", "choice": "[]", "grammar": "start: ("}
    for kind, value in broken.items():
        if kind in engine.config.capabilities.guided:
            request = engine.request(guided=GuidedDecoding(kind, value))  # type: ignore[arg-type]
            await expect_refusal(engine, request, f"guided kind {kind!r} with {value!r}")


async def _guided_text(engine: EngineDriver, kind: str) -> str | None:
    from tokenizers import Tokenizer

    directory = engine.config.model_directory
    if directory is None:
        skip("without model_directory the output cannot be read as text")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    values = {"json": json.dumps(_SCHEMA), "json_object": "", "regex": "(red|green) [0-9]{2}", "choice": '["yes","no"]'}
    prompt = tokenizer.encode("Answer: ", add_special_tokens=False).ids
    guided = GuidedDecoding(kind, values[kind])  # type: ignore[arg-type]
    stream = await engine.run(engine.request(prompt, guided=guided, max_tokens=200, ignore_eos=False))
    return str(tokenizer.decode(stream.ids)) if stream.finish_reason == "stop" else None


def _follows(kind: str, text: str) -> bool:
    if kind == "choice":
        return text.strip() in ("yes", "no")
    if kind == "regex":
        return re.fullmatch("(red|green) [0-9]{2}", text.strip()) is not None
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and (kind == "json_object" or isinstance(value.get("ok"), bool))


@checks.add("lora.unknown", needs=["lora"])
async def refuses_unknown_adapters(engine: EngineDriver) -> None:
    """A request for an adapter that is not loaded is refused with InvalidRequest, and so is unloading it."""
    await expect_refusal(engine, engine.request(lora="no-such-adapter"), "a request for an unknown adapter")
    try:
        await _lora_host(engine).unload_lora("no-such-adapter")
    except InvalidRequest:
        return
    fail("unload_lora() of an unknown adapter did nothing", "raise InvalidRequest")


@checks.add("lora.life", needs=["lora"], after=["lora.unknown", "limits.max_tokens"])
async def serves_an_adapter(engine: EngineDriver) -> None:
    """An adapter can be loaded, listed, used, not loaded twice, and unloaded."""
    directory, host = _lora_directory(engine), _lora_host(engine)
    await host.load_lora(_ADAPTER, directory)
    expect(_ADAPTER in host.loras(), "loras() does not list it after load_lora()", "list what requests may use")
    stream = await engine.run(engine.request(lora=_ADAPTER, max_tokens=4))
    expect(len(stream.ids) == 4, f"a request with the adapter gave {len(stream.ids)} of 4 ids", "serve it")
    try:
        await host.load_lora(_ADAPTER, directory)
    except DynamoError:
        pass
    else:
        fail("load_lora() took a name twice", "raise InvalidRequest when the name is taken")
    await host.unload_lora(_ADAPTER)
    expect(_ADAPTER not in host.loras(), "loras() lists it after unload_lora()", "forget it")
    await expect_refusal(engine, engine.request(lora=_ADAPTER), "a request for an unloaded adapter")


@checks.add("lora.prefix", needs=["lora"], after=["lora.life", "prefix.reuse"])
async def adapters_separate_blocks(engine: EngineDriver) -> None:
    """KV blocks are shared only between requests of the same adapter."""
    directory, host = _lora_directory(engine), _lora_host(engine)
    prompt = engine.prompt(4 * engine.config.block_size_tokens + 3)
    await host.load_lora(_ADAPTER, directory)
    await engine.run(engine.request(prompt))
    cached = (await engine.run(engine.request(prompt, lora=_ADAPTER))).usage.cached_tokens
    await host.unload_lora(_ADAPTER)
    expect(
        cached == 0,
        f"a request with an adapter reused {cached} tokens that were computed without it",
        "make the adapter part of the hash of the first block",
    )


def _lora_directory(engine: EngineDriver) -> str:
    return engine.settings.lora_directory or skip("give --lora DIRECTORY, an adapter of this model")


def _lora_host(engine: EngineDriver) -> LoraHost:
    if isinstance(engine.engine, LoraHost):
        return engine.engine
    return fail("the engine declares lora and has not its methods", "implement dynamo.protocols.engine.LoraHost")
