"""Engines that break one rule of prefix caches, KV events, grammars, adapters or embeddings; and two sound ones."""

from __future__ import annotations

import struct
from contextlib import aclosing

import msgspec
from broken_engines import Altered
from tokenizers import Tokenizer

from dynamo.echo.engine import EchoEngine
from dynamo.errors import InvalidRequest
from dynamo.protocols.engine import EngineCapabilities
from dynamo.protocols.kv_events import BlockRemoved, BlockStored
from dynamo.protocols.llm import LLMEngineOutput, Usage

replace = msgspec.structs.replace


def _capable(**flags):
    return EngineCapabilities(
        **{"load": True, "kv_events": True, "logprobs": True, "batch_invariant": True, "resume": True, **flags}
    )


class SharesAcrossSalts(Altered):
    """Events name the salt; the cache itself does not look at it."""

    salts: dict

    def __init__(self, options):
        super().__init__(options)
        acquire = self._cache.acquire
        self._cache.acquire = lambda prompt, salt: acquire(prompt, None if str(salt).startswith("tenant") else salt)


class HidesTheSalt(Altered):
    def event(self, event):
        yield replace(event, cache_salt=None) if isinstance(event, BlockStored) else event


class InventsCacheHits(Altered):
    def output(self, output, request):
        usage = output.usage
        yield replace(output, usage=usage and replace(usage, cached_tokens=usage.prompt_tokens))


class ReadsTheWrongBlocks(Altered):
    """Four cached blocks are taken for others."""

    def output(self, output, request):
        if (
            output.token_ids
            and self._runs[request.request_id].held.cached_tokens == 64
            and request.stop.max_tokens == 16
        ):
            output = replace(output, token_ids=[output.token_ids[0] + 1])
        yield output


class LosesItsEventSocket(EchoEngine):
    async def kv_events(self):
        raise ConnectionError("the event socket is closed")
        yield


class DropsStoredEvents(Altered):
    def event(self, event):
        if not isinstance(event, BlockStored):
            yield event


class DropsRemovedEvents(Altered):
    def event(self, event):
        if not isinstance(event, BlockRemoved):
            yield event


class DropsSomeRemovedEvents(Altered):
    removals = 0

    def event(self, event):
        self.removals += isinstance(event, BlockRemoved)
        if not (isinstance(event, BlockRemoved) and self.removals % 2):
            yield event


class RemovesUnknownBlocks(Altered):
    def event(self, event):
        yield event
        if isinstance(event, BlockRemoved):
            yield BlockRemoved([7])


class StoresTwice(Altered):
    def event(self, event):
        yield event
        if isinstance(event, BlockStored):
            yield event


class StoresWrongTokens(Altered):
    """Right for what the suite looks up first; wrong for longer prompts."""

    def event(self, event):
        if isinstance(event, BlockStored) and len(event.block_hashes) > 8:
            event = replace(event, token_ids=[token + 1 for token in event.token_ids])
        yield event


class ReportsHalfTheCache(EchoEngine):
    def load(self):
        return [replace(entry, cached_kv_blocks=entry.cached_kv_blocks // 2) for entry in super().load()]


class EmbedsDifferentlyEachTime(Altered):
    calls = 0

    def output(self, output, request):
        self.calls += 1
        first = struct.pack("<f", self.calls)
        yield replace(output, embedding=output.embedding and first + output.embedding[4:])


class AnswersYes(Altered):
    """Sound: whatever the choices are, "yes" is one of them in the suite."""

    async def start(self):
        config = await super().start()
        tokenizer = Tokenizer.from_file(str(config.model_directory / "tokenizer.json"))
        self.yes = tokenizer.encode("yes", add_special_tokens=False).ids
        config.capabilities = _capable(guided=["choice"])
        return config

    async def generate(self, request, context):
        if request.guided is None:
            async with aclosing(super().generate(request, context)) as outputs:
                async for output in outputs:
                    yield output
            return
        self.check(request.guided)
        usage = Usage(request.prompt().size, len(self.yes))
        yield LLMEngineOutput(self.yes, finish_reason="stop", usage=usage, step=self._step)

    def check(self, guided):
        if guided.value == "[]":
            raise InvalidRequest("there is nothing to choose from")


class IgnoresGrammars(AnswersYes):
    async def start(self):
        config = await super().start()
        self.yes = [*self.yes, *self.yes]
        return config


class TakesBrokenGrammars(AnswersYes):
    def check(self, guided):
        pass


class HostsAdapters(Altered):
    """Sound: an adapter changes nothing."""

    async def start(self):
        self.adapters = {}
        config = await super().start()
        config.capabilities = _capable(lora=True)
        return config

    def request(self, request):
        if request.lora is not None and request.lora not in self.adapters:
            raise InvalidRequest(f"adapter {request.lora!r} is not loaded")
        return replace(request, lora=None, cache_salt=f"lora:{request.lora}") if request.lora else request

    def event(self, event):
        if isinstance(event, BlockStored) and (event.cache_salt or "").startswith("lora:"):
            event = replace(event, lora=event.cache_salt.removeprefix("lora:"), cache_salt=None)
        yield event

    async def load_lora(self, name, path):
        if name in self.adapters:
            raise InvalidRequest(f"adapter {name!r} is loaded")
        self.adapters[name] = path

    async def unload_lora(self, name):
        if self.adapters.pop(name, None) is None:
            raise InvalidRequest(f"adapter {name!r} is not loaded")

    def loras(self):
        return list(self.adapters)


class ServesUnknownAdapters(HostsAdapters):
    def request(self, request):
        return replace(request, lora=None)


class SharesAcrossAdapters(HostsAdapters):
    def request(self, request):
        return replace(super().request(request), cache_salt=request.cache_salt)


class LoadsAnAdapterTwice(HostsAdapters):
    async def load_lora(self, name, path):
        self.adapters[name] = path
