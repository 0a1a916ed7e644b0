"""Does one batch: looks at its input, answers its lines, writes its files. Whatever is done already is not repeated."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from dynamo.errors import DynamoError, EngineError, LeaseLost, Unauthorized
from dynamo.frontend.batches.input import BatchLine, InputLimits, inspect_input, read_lines
from dynamo.frontend.batches.line import LineCaller, unanswered
from dynamo.frontend.batches.model_names import ModelNames
from dynamo.frontend.batches.output import write_output
from dynamo.frontend.batches.record import BatchFault, BatchRecord, Status
from dynamo.frontend.batches.table import Answered, BatchTable
from dynamo.frontend.files import FileRecord, FileSpace
from dynamo.frontend.security import Identity

__all__ = ["BatchRun", "Workshop"]

logger = logging.getLogger(__name__)

#: Between tries when the store or the disk fails; what is answered stays answered.
_STORE_PAUSE_SECONDS = 5.0
_EXPIRED_AT_ONCE = 500
#: Of a batch that names more, nobody asks which.
_MODELS = 16


class _InputLost(EngineError):
    """The input file is gone."""


class _KeyGone(Unauthorized):
    """The API key that made the batch is not valid any more."""

    code = "invalid_api_key"


class _NotServed(EngineError):
    """This process serves none of the models that the batch is for; others may."""


class Workshop(NamedTuple):
    """What all batches of a process share."""

    table: BatchTable
    space: FileSpace
    caller: LineCaller
    limits: InputLimits
    concurrency: int
    """How many requests of one batch are taken up at a time; how many are in work is up to the caller."""
    file_expiry_seconds: float
    knows_model: Callable[[str], bool]
    """Whether requests for a model can be answered by this process."""
    remembered: ModelNames

    def leaves(self, record: BatchRecord) -> bool:
        """Whether a batch is for others: this process serves none of its models, and some process once served one."""
        models = record.state.models
        return not any(map(self.knows_model, models)) and any(name in self.remembered for name in models)


class BatchRun:
    """One batch of this process. `cancel` is set when its client wants its end."""

    def __init__(self, record: BatchRecord, identity_of: Callable[[str], Identity | None], shop: Workshop) -> None:
        """`identity_of` is that of an owner now; None when the API key is no longer there."""
        self._record = record
        self._identity_of = identity_of
        self._shop = shop
        self.cancel = asyncio.Event()
        if record.status == "cancelling":
            self.cancel.set()

    async def run(self) -> None:
        """Until its end, or until it is another process's. Cancelling it leaves it to go on later."""
        fault: BatchFault | None = None
        while True:
            try:
                await (self._run() if fault is None else self._fail([fault]))
            except LeaseLost:
                logger.warning("batch %s goes on at another process", self._record.id)
                return
            except _InputLost as error:
                fault = BatchFault("unreadable_file", error.message)
            except _KeyGone as error:
                fault = BatchFault(error.code, error.message)
            except DynamoError as error:
                logger.warning("batch %s goes on in a while: %s", self._record.id, error)
                await asyncio.sleep(_STORE_PAUSE_SECONDS)
            except Exception:
                # Nobody waits for this task: a batch that it gave up would stay open for ever.
                logger.exception("batch %s failed", self._record.id)
                fault = BatchFault("internal_error", "internal error; the server's log has the details")
            else:
                return

    async def _run(self) -> None:
        record = self._record
        if record.status == "validating" and not await self._validate():
            return
        if record.status != "finalizing":
            try:
                await self._shop.remembered.learn()
                await self._answer_until_end()
            except _NotServed as error:
                logger.warning("batch %s waits for a frontend that serves its model: %s", record.id, error)
                await self._shop.table.release(record.number)
                return
        await self._finish()

    def _identity(self) -> Identity:
        """The owner's, asked for anew before every request: within hours keys are revoked, and lose models."""
        found = self._identity_of(self._record.owner)
        if found is None:
            raise _KeyGone("the API key that made the batch is not valid any more")
        if self._shop.leaves(self._record):
            raise _NotServed(f"nothing here serves {', '.join(self._record.state.models)}")
        return found

    async def _validate(self) -> bool:
        """Whether there is something to answer."""
        record, shop = self._record, self._shop
        path = shop.space.path(record.input_file_id)
        try:
            found = await asyncio.to_thread(inspect_input, path, record.state.endpoint, shop.limits)
        except OSError as error:
            raise _InputLost(f"the input cannot be read: {error.strerror}") from error
        if found.faults:
            await self._fail(found.faults)
            return False
        record.state.total = found.total
        record.state.models = sorted(found.models) if len(found.models) <= _MODELS else []
        record.state.in_progress_at = time.time()
        if await shop.table.validated(record):
            record.status = "in_progress"
        else:
            self.cancel.set()
        return True

    async def _answer_until_end(self) -> None:
        """Until all is answered, the client wants the end, or the time is over."""
        work = asyncio.ensure_future(self._answer_all())
        cancelled = asyncio.ensure_future(self.cancel.wait())
        left = max(0.0, self._record.state.expires_at - time.time())
        try:
            await asyncio.wait({work, cancelled}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelled.cancel()
            work.cancel()
            await asyncio.wait({work})
        if not work.cancelled():
            work.result()

    async def _answer_all(self) -> None:
        if self.cancel.is_set() or self._record.state.expires_at <= time.time():
            return
        lines = self._open_lines()
        turn = asyncio.Lock()

        async def work() -> None:
            while True:
                async with turn:
                    line = await anext(lines, None)
                if line is None:
                    return
                answer = await self._shop.caller.answer(line, self._record.owner, self._identity)
                await self._keep(answer)

        workers = [asyncio.ensure_future(work()) for _ in range(self._shop.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _keep(self, answer: Answered) -> None:
        """Keep an answer, however long the disk is full: it has cost an engine its time."""
        while True:
            try:
                await self._shop.table.add_answers(self._record.number, [answer])
            except LeaseLost:
                raise
            except DynamoError as error:
                logger.warning("batch %s waits for the store: %s", self._record.id, error)
                await asyncio.sleep(_STORE_PAUSE_SECONDS)
            else:
                return

    async def _open_lines(self) -> AsyncIterator[BatchLine]:
        shop, record = self._shop, self._record
        done = await shop.table.answered_lines(record.number)
        try:
            async for line in read_lines(shop.space.path(record.input_file_id), done, shop.limits):
                yield line
        except OSError as error:
            raise _InputLost(f"the input cannot be read: {error.strerror}") from error

    async def _finish(self) -> None:
        """Write the files and say how it ended."""
        record, shop, state = self._record, self._shop, self._record.state
        status = await self._end_status()
        state.finalizing_at = time.time()
        await shop.table.finalizing(record)
        if status == "expired":
            await self._expire_open_lines()
        expiry = state.output_expiry_seconds or shop.file_expiry_seconds
        written: list[FileRecord] = []
        try:
            for failed in (False, True):
                file = await write_output(record, shop.table, shop.space, failed=failed, expiry_seconds=expiry)
                if file is not None:
                    written.append(file)
                name = "error_file_id" if failed else "output_file_id"
                setattr(state, name, None if file is None else file.id)
            await shop.table.finish(record, status, written)
        except (EngineError, LeaseLost):
            # Not recorded, and the next try writes new ones: left here they would fill a disk that is full already.
            await shop.space.remove_bodies([file.id for file in written])
            raise
        logger.info("batch %s is %s", record.id, status)

    async def _end_status(self) -> Status:
        record, table, state = self._record, self._shop.table, self._record.state
        now = time.time()
        if self.cancel.is_set():
            # Asked for by another process, perhaps: the table knows when.
            state.cancelling_at = (await table.get(record.id, record.owner)).state.cancelling_at
            state.cancelled_at = now
            return "cancelled"
        if state.expired_at is not None or len(await table.answered_lines(record.number)) < state.total:
            state.expired_at = now
            return "expired"
        state.completed_at = now
        return "completed"

    async def _expire_open_lines(self) -> None:
        """Answer what was not answered in time."""
        late: list[Answered] = []
        async for line in self._open_lines():
            late.append(unanswered(line, "batch_expired", self._why_late(line)))
            if len(late) >= _EXPIRED_AT_ONCE:
                await self._shop.table.add_answers(self._record.number, late)
                late = []
        await self._shop.table.add_answers(self._record.number, late)

    def _why_late(self, line: BatchLine) -> str:
        model = line.body["model"]
        reason = "" if self._shop.knows_model(model) else f", and {model!r} is not served here"
        return f"the completion window was over before this request{reason}"

    async def _fail(self, faults: list[BatchFault]) -> None:
        self._record.state.errors = faults
        self._record.state.failed_at = time.time()
        await self._shop.table.finish(self._record, "failed")
