"""Proves now and then that an idle engine still answers: a process can live while its engine hangs."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable

from dynamo.errors import DynamoError
from dynamo.protocols.context import RequestContext
from dynamo.protocols.llm import (
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    pack_token_ids,
)
from dynamo.runtime.context import Context
from dynamo.runtime.tasks import within

__all__ = ["Canary"]

logger = logging.getLogger(__name__)

_PROMPT = pack_token_ids([1, 1])


class Canary:
    """Sends a one-token request through `generate` after `interval_seconds` without any output."""

    def __init__(
        self,
        generate: Callable[[PreprocessedRequest, RequestContext], AsyncIterator[LLMEngineOutput]],
        last_output: Callable[[], float],
        model: str,
        *,
        interval_seconds: float,
        timeout_seconds: float,
    ) -> None:
        self._generate = generate
        self._last_output = last_output
        self._model = model
        self._interval = interval_seconds
        self._timeout = timeout_seconds
        self.failure: str | None = None
        """Why the engine counts as not healthy; None while it is."""

    async def run(self) -> None:
        """Watch until cancelled. `last_output` is a time of `time.monotonic`."""
        while True:
            idle = time.monotonic() - self._last_output()
            if self.failure is None and idle < self._interval:
                await asyncio.sleep(self._interval - idle)
                continue
            await self._try()
            await asyncio.sleep(self._interval)

    async def _try(self) -> None:
        context = Context(f"canary-{uuid.uuid4().hex}")
        try:
            await within(self._timeout, self._ask(context))
        except asyncio.TimeoutError:
            self._failed(f"the engine did not answer a canary request within {self._timeout:g} s")
        except DynamoError as error:
            self._failed(f"a canary request failed: {error.message}")
        else:
            if self.failure is not None:
                logger.info("the engine answers again")
            self.failure = None
        finally:
            context.cancel()

    async def _ask(self, context: Context) -> None:
        request = PreprocessedRequest(
            context.request_id,
            self._model,
            _PROMPT,
            SamplingOptions(temperature=0),
            StopConditions(max_tokens=1, ignore_eos=True),
        )
        async for _ in self._generate(request, context):
            pass

    def _failed(self, reason: str) -> None:
        if self.failure is None:
            logger.error("%s", reason)
        self.failure = reason
