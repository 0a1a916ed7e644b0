"""One open request of the mocker: its planned answer, and what its reader has to get."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from dynamo.errors import DynamoError
from dynamo.mocker.answers import Answer
from dynamo.mocker.sequence import Sequence
from dynamo.protocols.hashing import seed_of, sequence_hashes
from dynamo.protocols.llm import FinishReason, KvTransferParams, LLMEngineOutput, PreprocessedRequest, Usage

__all__ = ["Stream"]


class Stream:
    """Also the key of its sequence, for which it is a `dynamo.mocker.event_queue.BlockContent`."""

    def __init__(
        self,
        request: PreprocessedRequest,
        answer: Answer,
        block_size: int,
        *,
        transferred: bool,
        kv_transfer_params: KvTransferParams | None,
    ) -> None:
        prompt = request.prompt()
        drawn = [*answer.token_ids, *([] if answer.stop_reason is None else [answer.stop_reason])]
        self.request = request
        self.answer = answer
        self._kv_transfer_params = kv_transfer_params
        self._tokens = np.concatenate([prompt, np.asarray(drawn, np.uint32)])
        names = sequence_hashes(self._tokens, block_size, seed_of(None, request.cache_salt)).tolist()
        self.sequence = Sequence(
            self, len(prompt), len(drawn), names, priority=request.priority, transferred=transferred
        )
        self.ended = False
        self._streamed = 0
        self._queue: asyncio.Queue[LLMEngineOutput | DynamoError] = asyncio.Queue()

    @property
    def cache_salt(self) -> str | None:
        """See `BlockContent`."""
        return self.request.cache_salt

    def tokens(self, start: int, stop: int) -> list[int]:
        """See `BlockContent`."""
        ids: list[int] = self._tokens[start:stop].tolist()
        return ids

    async def next(self) -> LLMEngineOutput:
        """The next output. Raises the error that ended the stream."""
        item = await self._queue.get()
        if isinstance(item, DynamoError):
            raise item
        return item

    def advance(self, step: int) -> None:
        """The core has drawn one more token."""
        if self.ended:
            return
        drawn = self.sequence.generated
        token_ids = self.answer.token_ids[drawn - 1 : drawn]
        self._streamed += len(token_ids)
        if drawn < self.sequence.output_tokens:
            self._queue.put_nowait(LLMEngineOutput(token_ids, step=step))
        else:
            self._end(self.answer.finish_reason, token_ids, step)

    def cancel(self) -> None:
        """End early."""
        if not self.ended:
            self._end("cancelled", [], 0)

    def fail(self, error: DynamoError) -> None:
        """End with an error."""
        if not self.ended:
            self.ended = True
            self._queue.put_nowait(error)

    def seconds_left(self) -> float | None:
        """Until the request's deadline; None without one."""
        deadline = self.request.deadline_unix_seconds
        return None if deadline is None else max(0.0, deadline - time.time())

    def _end(self, reason: FinishReason, token_ids: list[int], step: int) -> None:
        self.ended = True
        # What another worker generated is neither the client's prompt nor new: that worker has counted it.
        prompt_tokens = self.sequence.prompt_tokens - self.request.prior_output_tokens
        cached_tokens = min(self.sequence.cached_tokens, prompt_tokens)
        output = LLMEngineOutput(
            token_ids,
            finish_reason=reason,
            usage=Usage(prompt_tokens, self._streamed, cached_tokens),
            step=step,
        )
        if reason == "stop":
            output.stop_reason = self.answer.stop_reason
        if reason != "cancelled":
            output.kv_transfer_params = self._kv_transfer_params
        self._queue.put_nowait(output)
