"""Engines that break one rule each, for the tests of the conformance suite: every check must find its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import msgspec

from dynamo.echo.engine import EchoEngine
from dynamo.errors import Draining, InvalidRequest
from dynamo.protocols.context import RequestContext
from dynamo.protocols.engine import EngineConfig
from dynamo.protocols.kv_events import EngineKvEvents
from dynamo.protocols.llm import LLMEngineOutput, PreprocessedRequest, Usage

replace = msgspec.structs.replace


class Altered(EchoEngine):
    """An echo engine whose requests, outputs and events pass through the methods that a subclass overrides."""

    async def generate(self, request: PreprocessedRequest, context: RequestContext) -> AsyncIterator[LLMEngineOutput]:
        async with aclosing(super().generate(self.request(request), context)) as outputs:
            async for output in outputs:
                for altered in self.output(output, request):
                    yield altered

    async def kv_events(self) -> AsyncIterator[EngineKvEvents]:
        async for batch in super().kv_events():
            if events := [altered for event in batch.events for altered in self.event(event)]:
                yield EngineKvEvents(events)

    def request(self, request):
        return request

    def output(self, output, request) -> Iterator[LLMEngineOutput]:
        yield output

    def event(self, event):
        yield event


class HangsAtStart(EchoEngine):
    cleaned = 0

    async def cleanup(self):
        type(self).cleaned += 1

    async def start(self):
        await asyncio.Event().wait()


class FailsAtStart(EchoEngine):
    async def start(self):
        raise FileNotFoundError("model.bin")


class PromisesEventsItCannotSend(EchoEngine):
    kv_events = None

    def __getattribute__(self, name):
        if name == "kv_events":
            raise AttributeError(name)
        return super().__getattribute__(name)


class ForgetsContextLength(EchoEngine):
    async def start(self) -> EngineConfig:
        config = await super().start()
        config.context_length_tokens = 0
        return config


class NeverFinishes(Altered):
    def output(self, output, request):
        yield replace(output, finish_reason=None)


class FinishesTwice(Altered):
    def output(self, output, request):
        yield output
        if output.finish_reason:
            yield output


class FinishesEarly(Altered):
    def output(self, output, request):
        yield output
        if output.finish_reason:
            yield LLMEngineOutput(step=output.step)


class HangsInTheMiddle(EchoEngine):
    async def generate(self, request, context):
        async with aclosing(super().generate(request, context)) as outputs:
            yield await outputs.__anext__()
            await asyncio.Event().wait()


class StreamsEverythingAgain(Altered):
    def __init__(self, options):
        super().__init__(options)
        self.so_far = {}

    def output(self, output, request):
        so_far = self.so_far.setdefault(request.request_id, [])
        so_far.extend(output.token_ids)
        yield replace(output, token_ids=list(so_far) if output.token_ids else [])


class CountsStepsDown(Altered):
    def output(self, output, request):
        yield replace(output, step=1_000_000 - output.step)


class CountsThePromptAsCompletion(Altered):
    def output(self, output, request):
        usage = output.usage
        if usage and not request.prior_output_tokens and not request.stop.stop_token_ids and not request.embed:
            usage = Usage(usage.prompt_tokens, usage.prompt_tokens + usage.completion_tokens, usage.cached_tokens)
        yield replace(output, usage=usage)


class IgnoresMaxTokens(Altered):
    def request(self, request):
        return replace(request, stop=replace(request.stop, max_tokens=None))


class IgnoresIgnoreEos(Altered):
    """Only behind the prompt's own length: echo has no other end of sequence."""

    def request(self, request):
        short = request.stop.max_tokens is not None and request.stop.max_tokens <= 24
        return request if short or request.priority else replace(request, stop=replace(request.stop, ignore_eos=False))


class StreamsTheStopId(Altered):
    def output(self, output, request):
        if output.stop_reason is not None:
            yield LLMEngineOutput([output.stop_reason], step=output.step)
        yield output


class IgnoresStopIds(Altered):
    def request(self, request):
        return replace(request, stop=replace(request.stop, stop_token_ids=[]))


class IgnoresMinTokens(Altered):
    def request(self, request):
        return replace(request, stop=replace(request.stop, min_tokens=0))


class RollsDice(Altered):
    def output(self, output, request):
        if output.token_ids and not output.logprobs:
            output = replace(output, token_ids=[int.from_bytes(os.urandom(2), "little")])
        elif output.logprobs:
            token = int.from_bytes(os.urandom(2), "little")
            output = replace(output, token_ids=[token], logprobs=[replace(output.logprobs[0], token_id=token)])
        yield output


class ForgetsTheSeed(Altered):
    def output(self, output, request):
        if request.sampling.seed is not None and output.token_ids:
            output = replace(output, token_ids=[int.from_bytes(os.urandom(2), "little")])
        yield output


class ReportsProbabilities(Altered):
    """In place of their logarithms."""

    def output(self, output, request):
        if output.logprobs:
            output = replace(output, logprobs=[replace(entry, logprob=1.0) for entry in output.logprobs])
        yield output


class LeavesOutCachedPromptLogprobs(Altered):
    def __init__(self, options):
        super().__init__(options)
        self.seen = set()

    def output(self, output, request):
        if output.prompt_logprobs is not None:
            if request.token_ids in self.seen:
                output = replace(output, prompt_logprobs=output.prompt_logprobs[-3:])
            self.seen.add(request.token_ids)
        yield output


class MixesUpABatch(Altered):
    def output(self, output, request):
        if len(self._runs) > 8 and output.token_ids and request.stop.max_tokens == 16:
            output = replace(output, token_ids=[output.token_ids[0] + 1])
        yield output


class ResumesFromTheBeginning(Altered):
    def request(self, request):
        return replace(request, prior_output_tokens=0, token_ids=request.token_ids)

    def output(self, output, request):
        usage = output.usage and replace(
            output.usage, prompt_tokens=output.usage.prompt_tokens - request.prior_output_tokens
        )
        yield replace(output, usage=usage)


class CountsResumedOutputAsPrompt(Altered):
    def output(self, output, request):
        usage = output.usage and replace(
            output.usage, prompt_tokens=output.usage.prompt_tokens + request.prior_output_tokens
        )
        yield replace(output, usage=usage)


class MinTokensStartAnew(Altered):
    def request(self, request):
        least = request.stop.min_tokens + request.prior_output_tokens if request.stop.min_tokens else 0
        return replace(request, stop=replace(request.stop, min_tokens=least))


class OverrunsTheContext(Altered):
    async def start(self):
        config = await super().start()
        self._settings = self._settings.model_copy(update={"max_model_len": config.context_length_tokens + 3})
        return config

    def request(self, request):
        if request.prompt().size > self._settings.max_model_len - 3:
            raise InvalidRequest("too long", reason="context_length_exceeded")
        return request


class ServesEmptyPrompts(Altered):
    def request(self, request):
        return request if request.token_ids else replace(request, token_ids=b"\1\0\0\0")


class CutsLongPrompts(Altered):
    def request(self, request):
        return replace(request, token_ids=request.token_ids[: 4 * (self._settings.max_model_len - 1)])


class RefusesWithoutAReason(EchoEngine):
    async def generate(self, request, context):
        try:
            async with aclosing(super().generate(request, context)) as outputs:
                async for output in outputs:
                    yield output
        except InvalidRequest as error:
            raise InvalidRequest(error.message) from None


class RaisesForeignErrors(Altered):
    def request(self, request):
        if request.prompt().size and int(request.prompt().max()) > 10**6:
            raise IndexError("token id out of range")
        return request


class DiesOfABadRequest(Altered):
    poisoned = False

    def request(self, request):
        if request.sampling.logit_bias:
            self.poisoned = True
        elif self.poisoned:
            raise InvalidRequest("the engine core is gone")
        return request


class RefusesPriorities(Altered):
    def request(self, request):
        if request.priority:
            raise InvalidRequest("no priorities here")
        return request


class IgnoresDeadlines(Altered):
    def request(self, request):
        return replace(request, deadline_unix_seconds=None)


class ForgetsToFree(EchoEngine):
    """Blocks of finished requests stay in use."""

    def _end(self, run):
        run.held.chain, run.held.private = [], 0
        super()._end(run)


class ReportsNothingRunning(EchoEngine):
    def load(self):
        return [replace(entry, running_requests=0) for entry in super().load()]


class IgnoresAbort(EchoEngine):
    async def abort(self, request_id):
        pass


class MissesAnEarlyAbort(EchoEngine):
    """Knows a request some time after it was asked for, and ignores the abort of what it does not know."""

    async def generate(self, request, context):
        for _ in range(3):
            await asyncio.sleep(0)
        async with aclosing(super().generate(request, context)) as outputs:
            async for output in outputs:
                yield output


class FreesOnlyWhenRead(EchoEngine):
    """An abort stops the stream; the blocks go when its reader comes for the last output."""

    async def abort(self, request_id):
        if run := self._runs.get(request_id):
            run.stop()


class AbortOfUnknownIdsFails(EchoEngine):
    async def abort(self, request_id):
        if request_id not in self._runs:
            raise KeyError(request_id)
        await super().abort(request_id)


class ForgetsClosedStreams(EchoEngine):
    async def generate(self, request, context):
        outputs = super().generate(request, context)
        self.kept = [*getattr(self, "kept", ()), outputs]
        async for output in outputs:
            yield output


class StumblesInAStorm(Altered):
    def output(self, output, request):
        if len(self._runs) > 60:
            raise RuntimeError("too many at once")
        yield output


class ServesWhileDraining(EchoEngine):
    async def drain(self, deadline_seconds):
        await super().drain(deadline_seconds)
        self._draining = False

    def _begin(self, request):
        self._draining = False
        return super()._begin(request)


class CutsStreamsToDrain(EchoEngine):
    async def drain(self, deadline_seconds):
        for request_id in list(self._runs):
            await self.abort(request_id)
        await super().drain(deadline_seconds)


class RefusesWithTheWrongError(EchoEngine):
    def _begin(self, request):
        try:
            return super()._begin(request)
        except Draining as error:
            raise InvalidRequest("come back later") from error


class DrainsForever(EchoEngine):
    async def drain(self, deadline_seconds):
        await super().drain(1e6)


class CleansUpSilently(EchoEngine):
    """Open streams end as if the client had cancelled them."""

    async def cleanup(self):
        for run in list(self._runs.values()):
            self._end(run)


class CleansUpOnce(EchoEngine):
    async def cleanup(self):
        if self._closed:
            raise RuntimeError("already closed")
        await super().cleanup()
