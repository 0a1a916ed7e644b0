"""Batches that mean harm, or whose key, model or disk fails them on the way."""

from __future__ import annotations

import asyncio
import json

import msgspec
import openai

from dynamo.echo.engine import EchoEngine
from dynamo.frontend.batches.input import InputLimits, inspect_input
from dynamo.frontend.batches.line import LineCaller
from dynamo.frontend.batches.model_names import ModelNames
from dynamo.frontend.batches.record import BatchState
from dynamo.frontend.batches.run import BatchRun, Workshop
from dynamo.frontend.batches.table import BATCHES_SCHEMA, Answered, BatchTable
from dynamo.frontend.database import Database
from dynamo.frontend.files import FileSpace
from dynamo.frontend.files.space import FILES_SCHEMA
from dynamo.frontend.security import ANONYMOUS
from dynamo.protocols.engine import EngineOptions

CHAT = "/v1/chat/completions"


async def begun(make_deployment, client_of, keys):
    """A batch of ann's, of which one request at a time is in work; the first has been answered."""
    deployment = await make_deployment(
        {"backend": "echo", "argv": ["--tokens-per-second", "40"]},
        api_key_file=str(keys),
        security_reload_seconds=0.02,
        batch_concurrency=1,
        batch_model_wait_seconds=0,
    )
    await deployment.serves("echo")
    client = client_of(deployment, "sk-key-of-ann")
    made = await client.submit([client.line(n) for n in range(100)])

    async def first_answer():
        while not (await client.sdk.batches.retrieve(made.id)).request_counts.completed:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(first_answer(), 20)
    return client, made


async def test_a_key_that_is_revoked_ends_its_batches(make_deployment, client_of, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("[{name: ann, key: sk-key-of-ann}]")
    client, made = await begun(make_deployment, client_of, keys)
    keys.write_text("[{name: bob, key: sk-key-of-bob}]")

    async def refused():
        while True:
            try:
                await client.sdk.batches.retrieve(made.id)
            except openai.AuthenticationError:
                return
            await asyncio.sleep(0.02)

    await asyncio.wait_for(refused(), 20)
    # The key comes back, and its owner sees that nothing was done meanwhile.
    await asyncio.sleep(0.3)  # longer than the request that was in work takes
    keys.write_text("[{name: ann, key: sk-key-of-ann}, {name: bob, key: sk-key-of-bob}]")

    async def seen():
        while True:
            try:
                return await client.until(made)
            except openai.AuthenticationError:
                await asyncio.sleep(0.02)

    done = await asyncio.wait_for(seen(), 20)
    assert done.status == "failed"
    assert [error.code for error in done.errors.data] == ["invalid_api_key"]
    assert done.request_counts.completed < 100


async def test_a_model_that_a_key_loses_is_refused_from_then_on(make_deployment, client_of, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("[{name: ann, key: sk-key-of-ann}]")
    client, made = await begun(make_deployment, client_of, keys)
    keys.write_text("[{name: ann, key: sk-key-of-ann, models: [other]}]")
    done = await client.until(made)
    assert done.status == "completed"
    assert done.request_counts.failed > 0
    row = (await client.rows(done.error_file_id))[-1]
    assert (row["custom_id"], row["response"]["status_code"]) == ("c99", 404)


def test_a_file_of_blank_lines_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "input"
    line = json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m"}}).encode()
    path.write_bytes(line + b"\n" * (1 << 20))
    found = inspect_input(path, CHAT, InputLimits(requests=10, line_bytes=1000))
    assert found.total < 20
    assert "too_many_requests" in {fault.code for fault in found.faults}
    path.write_bytes(b"\n\n\n".join(line.replace(b'"a"', b'"%d"' % n) for n in range(10)) + b"\n\n")
    assert not inspect_input(path, CHAT, InputLimits(requests=10, line_bytes=1000)).faults


def test_what_is_said_of_a_line_is_short(tmp_path):
    path = tmp_path / "input"
    huge = "x" * 100_000
    good = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m"}}
    for fields, code in (
        ({"method": huge}, "invalid_method"),
        ({"url": huge}, "mismatched_url"),
        ({"body": {"model": huge}}, "invalid_model"),
    ):
        path.write_bytes(json.dumps({**good, **fields}).encode())
        [fault] = inspect_input(path, CHAT, InputLimits(10, 1 << 20)).faults
        assert (fault.code, len(fault.message) < 500) == (code, True)


class Full(EchoEngine):
    """A model of another name, at which requests wait for ever."""

    def __init__(self):
        super().__init__(EngineOptions(served_model_name="full"))

    def load(self):
        return [msgspec.structs.replace(rank, waiting_requests=1) for rank in super().load()]


async def test_a_batch_that_waits_for_a_full_model_holds_up_no_other(make_deployment, client_of):
    deployment = await make_deployment({"backend": "echo"}, batch_concurrency=1)
    await deployment.add_engine(Full())
    await deployment.serves("echo")
    await deployment.until(lambda: deployment.frontend.models.crowded("full"))
    client = client_of(deployment)
    body = {"model": "full", "messages": [{"role": "user", "content": "x"}]}
    waiting = await client.submit([client.line(n, body) for n in range(3)])
    await client.until(waiting, ("in_progress",))
    done = await client.until(await client.submit([client.line(0)]))
    assert (done.status, done.request_counts.completed) == ("completed", 1)
    assert (await client.sdk.batches.retrieve(waiting.id)).status == "in_progress"


class NoRoomForErrors(FileSpace):
    """The second body cannot be written."""

    written = 0

    def path(self, file_id):
        self.written += 1
        return super().path(file_id) if self.written == 1 else super().path(f"no-such-directory/{file_id}")

    async def remove_bodies(self, file_ids):
        self.written = 0
        await super().remove_bodies(file_ids)
        if file_ids and not any(self.path(".").parent.iterdir()):
            self.cleaned.set()


async def test_files_of_an_end_that_failed_do_not_stay_on_the_disk(tmp_path):
    database = Database(tmp_path / "db", FILES_SCHEMA + BATCHES_SCHEMA, what="batches", hint="")
    space = NoRoomForErrors(database, tmp_path / "files", 10, 1 << 20)
    space.cleaned = asyncio.Event()
    table = BatchTable(database, "me", max_open=10, max_own=10)
    made = await table.add("batch_1", "", "file-1", BatchState(CHAT, "24h", 2e9, total=2))
    [record] = await table.claim(1, 60.0)
    await table.add_answers(made.number, [Answered(1, False, b"{}"), Answered(2, True, b"{}")])
    record.status = "finalizing"
    caller = LineCaller({}, lambda _model: False, 0, 1, 0.0)
    shop = Workshop(
        table, space, caller, InputLimits(10, 1000), 1, 3600.0, lambda _model: True, ModelNames(database, list)
    )
    work = asyncio.create_task(BatchRun(record, lambda _owner: ANONYMOUS, shop).run())
    await asyncio.wait_for(space.cleaned.wait(), 20)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert (await table.get("batch_1", "")).status == "finalizing"
    assert len(await table.answered_lines(made.number)) == 2
    await database.close()


async def test_tidying_outlives_a_directory_that_cannot_be_read(tmp_path):
    database = Database(tmp_path / "db", FILES_SCHEMA + BATCHES_SCHEMA, what="files", hint="")
    space = FileSpace(database, tmp_path / "files", 10, 1000)
    (tmp_path / "files").rmdir()
    await space.tidy()
    await space.remove_bodies(["gone"])
    (tmp_path / "files" / "a-directory").mkdir(parents=True)
    await space.remove_bodies(["a-directory"])  # not a file: said in the log, and nothing else
    assert (tmp_path / "files" / "a-directory").is_dir()
    await database.close()


def test_a_line_of_very_many_values_is_a_fault(tmp_path):
    line = b'{"custom_id": "a", "method": "POST", "url": "%b", "body": {"model": "m", "x": [%b[]]}}\n'
    (tmp_path / "file").write_bytes(line % (CHAT.encode(), b"[]," * 600_000))
    found = inspect_input(tmp_path / "file", CHAT, InputLimits(10, 8 << 20))
    assert [(fault.code, fault.line) for fault in found.faults] == [("invalid_request", 1)]
    assert "more than 500000" in found.faults[0].message
