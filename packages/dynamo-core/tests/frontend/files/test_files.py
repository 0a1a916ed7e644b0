"""Files through the openai SDK and as raw forms: bounds, broken forms, slow and lost clients, a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path

import openai
import pytest

from dynamo.errors import Cancelled, EngineError
from dynamo.frontend.database import Database, StorageFull
from dynamo.frontend.files.record import FileRecord
from dynamo.frontend.files.space import FILES_SCHEMA, FileSpace
from dynamo.frontend.files.upload import disk_error, receive
from dynamo.runtime.http import BodyStream

BATCHES = "CREATE TABLE IF NOT EXISTS batches (input_file_id TEXT, finished REAL);"


@pytest.fixture
async def sdk(echo):
    base = f"http://127.0.0.1:{echo.frontend.server.port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="x", max_retries=0) as client:
        yield client


def kept(tmp_path):
    return sorted((tmp_path / "frontend" / "files").iterdir())


async def test_the_sdk_keeps_reads_lists_and_deletes_files(sdk, tmp_path):
    bodies = [os.urandom(3 << 20), b"one\r\n--two\r\n\r\n", b"x"]
    made = [
        await sdk.files.create(file=(f"file {n} \u00e9.jsonl", body), purpose="batch") for n, body in enumerate(bodies)
    ]
    for file, body in zip(made, bodies, strict=True):
        assert (file.object, file.bytes, file.status, file.purpose) == ("file", len(body), "processed", "batch")
        assert await sdk.files.retrieve(file.id) == file
        assert (await sdk.files.content(file.id)).content == body
    assert made[0].filename == "file 0 \u00e9.jsonl"
    assert stat.S_IMODE((tmp_path / "frontend" / "files").stat().st_mode) == 0o700
    ids = [file.id for file in made]
    assert [file.id async for file in await sdk.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in (await sdk.files.list(order="asc", after=ids[0])).data] == ids[1:]
    assert (await sdk.files.list(purpose="batch_output")).data == []
    assert (await sdk.files.delete(ids[1])).deleted
    assert [path.name for path in kept(tmp_path)] == sorted([ids[0], ids[2]])
    for call in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        for unknown in (ids[1], "..%2f..%2fbatches.sqlite"):
            with pytest.raises(openai.NotFoundError):
                await call(unknown)
    with pytest.raises(openai.BadRequestError):
        await sdk.files.list(after=ids[1])


async def test_a_path_as_a_name_is_only_a_name(sdk):
    for name in ("../../etc/passwd", "C:\\dir\\passwd"):
        assert (await sdk.files.create(file=(name, b"x"), purpose="batch")).filename == "passwd"


async def test_clients_say_when_files_expire(sdk):
    file = await sdk.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at - file.created_at == 3600
    for seconds in (10, 31 * 24 * 3600):
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.files.create(
                file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": seconds}
            )
        assert caught.value.param == "expires_after.seconds"


def part(name, value, filename=None):
    extra = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\ncontent-disposition: form-data; name="{name}"{extra}\r\n\r\n{value}\r\n'


FILE, PURPOSE = part("file", "x", "f"), part("purpose", "batch")
FORM = "multipart/form-data; boundary=b"
BAD_FORMS = {
    "no form": ("application/json", "{}", "file"),
    "no boundary": ("multipart/form-data", FILE + PURPOSE + "--b--", "file"),
    "no end": (FORM, FILE + PURPOSE, None),
    "another boundary": (FORM, "--c\r\n", None),
    "no file": (FORM, PURPOSE + "--b--\r\n", "file"),
    "two files": (FORM, FILE + FILE + PURPOSE + "--b--\r\n", "file"),
    "no filename": (FORM, part("file", "x") + PURPOSE + "--b--\r\n", "file"),
    "an unprintable filename": (FORM, part("file", "x", "a\x07b") + PURPOSE + "--b--\r\n", "file"),
    "an empty file": (FORM, part("file", "", "f") + PURPOSE + "--b--\r\n", "file"),
    "no purpose": (FORM, FILE + "--b--\r\n", "purpose"),
    "another purpose": (FORM, FILE + part("purpose", "vision") + "--b--\r\n", "purpose"),
    "a long field": (FORM, FILE + part("purpose", "x" * 5000) + "--b--\r\n", "purpose"),
    "many fields": (FORM, FILE + PURPOSE + "".join(part(f"f{n}", "") for n in range(20)) + "--b--\r\n", None),
    "a part without a name": (FORM, "--b\r\nx-y: z\r\n\r\n1\r\n--b--\r\n", "file"),
    "expires_after": (FORM, FILE + PURPOSE + part("expires_after[anchor]", "x") + "--b--\r\n", "expires_after.anchor"),
    "a huge header": (FORM, "--b\r\nx: " + "y" * 20_000 + "\r\n\r\n\r\n--b--\r\n", None),
}


async def test_broken_forms_are_refused_and_leave_nothing(echo, tmp_path):
    for name, (kind, body, param) in BAD_FORMS.items():
        answer = await echo.client.post("/v1/files", content=body.encode(), headers={"content-type": kind})
        assert (name, answer.status_code) == (name, 400), answer.text
        assert (name, answer.json()["error"]["param"]) == (name, param), answer.text
    assert kept(tmp_path) == []


async def test_sizes_and_counts_are_bounded(make_deployment, tmp_path):
    deployment = await make_deployment(file_limit_mib=1, file_store_mib=3, max_files=4)
    client = deployment.client

    async def upload(size):
        form = {"file": ("f", bytes(size))}
        return await client.post("/v1/files", files=form, data={"purpose": "batch"})

    assert (await upload(2 << 20)).status_code == 413
    assert kept(tmp_path) == []
    statuses = [(await upload(1_000_000)).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 507]
    assert [(await upload(1)).status_code for _ in range(2)] == [200, 507]
    assert len(kept(tmp_path)) == 4


class RawUpload:
    """An upload that a test sends piece by piece."""

    BODY = (PURPOSE + part("file", "x" * 1_600_000, "f") + "--b--\r\n").encode()

    async def begin(self, deployment, *, declared):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", deployment.frontend.server.port)
        self.declared = declared
        size = f"content-length: {len(self.BODY)}" if declared else "transfer-encoding: chunked"
        self.writer.write(f"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: {FORM}\r\n{size}\r\n\r\n".encode())
        self.send(self.BODY[:1_200_000])
        return self

    def send(self, data):
        self.writer.write(data if self.declared else b"%x\r\n%b\r\n" % (len(data), data))

    def send_rest(self):
        self.send(self.BODY[1_200_000:])
        if not self.declared:
            self.writer.write(b"0\r\n\r\n")

    async def status(self):
        line = await asyncio.wait_for(self.reader.readline(), 20)
        self.writer.transport.abort()
        return int(line.split()[1])


async def test_uploads_that_come_together_share_what_is_left(make_deployment, tmp_path):
    deployment = await make_deployment(file_limit_mib=2, file_store_mib=3)
    first = await RawUpload().begin(deployment, declared=True)
    await deployment.until(lambda: kept(tmp_path))
    # Of a declared one all counts at once, of others what has come.
    assert await (await RawUpload().begin(deployment, declared=True)).status() == 507
    second = await RawUpload().begin(deployment, declared=False)
    await deployment.until(lambda: sum(path.stat().st_size > 1_000_000 for path in kept(tmp_path)) == 2)
    assert await (await RawUpload().begin(deployment, declared=False)).status() == 507
    second.send_rest()
    assert await second.status() == 507
    first.send_rest()
    assert await first.status() == 200
    await deployment.until(lambda: [path.stat().st_size for path in kept(tmp_path)] == [1_600_000])


async def test_one_key_leaves_others_room_to_upload(make_deployment, tmp_path):
    deployment = await make_deployment(api_keys=["sk-one-key-here", "sk-other-key-here"])
    writers = []
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: {FORM}\r\ncontent-length: 1000000\r\n"
    for _ in range(4):
        _, writer = await asyncio.open_connection("127.0.0.1", deployment.frontend.server.port)
        writer.write(f"{head}authorization: Bearer sk-one-key-here\r\n\r\n{FILE}".encode())
        writers.append(writer)
    await deployment.until(lambda: len(kept(tmp_path)) == 4)
    statuses = {}
    for key in ("sk-one-key-here", "sk-other-key-here"):
        answer = await deployment.client.post(
            "/v1/files",
            files={"file": ("f", b"x")},
            data={"purpose": "batch"},
            headers={"authorization": f"Bearer {key}"},
        )
        statuses[key] = answer.status_code
    assert statuses == {"sk-one-key-here": 429, "sk-other-key-here": 200}
    for writer in writers:
        writer.transport.abort()
    await deployment.until(lambda: len(kept(tmp_path)) == 1)


async def test_nothing_is_read_of_a_client_without_a_key(make_deployment, tmp_path):
    deployment = await make_deployment(api_keys=["sk-right-key"])
    reader, writer = await asyncio.open_connection("127.0.0.1", deployment.frontend.server.port)
    writer.write(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nsome")
    answer = await asyncio.wait_for(reader.read(), 20)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer
    writer.close()
    assert kept(tmp_path) == []


async def test_an_upload_that_is_broken_off_leaves_nothing(echo, tmp_path):
    _, writer = await asyncio.open_connection("127.0.0.1", echo.frontend.server.port)
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: {FORM}\r\ncontent-length: 1000000\r\n\r\n"
    writer.write(head.encode() + b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nabc')
    await echo.until(lambda: kept(tmp_path) and kept(tmp_path)[0].stat().st_size)
    writer.transport.abort()
    await echo.until(lambda: not kept(tmp_path))


async def test_connections_go_on_after_uploads_and_pipelining_waits(echo):
    body = (FILE + PURPOSE + "--b--\r\n").encode()
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: {FORM}\r\ncontent-length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", echo.frontend.server.port)
    live = b"GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    writer.write((head.encode() + body) * 3 + live)
    answer = await asyncio.wait_for(reader.read(), 20)
    assert answer.count(b"HTTP/1.1 200") == 4, answer
    assert answer.count(b'"purpose":"batch"') == 3
    writer.close()


async def test_a_slow_reader_holds_up_nobody(echo, sdk):
    file = await sdk.files.create(file=("f", bytes(20 << 20)), purpose="batch")
    async with echo.client.stream("GET", f"/v1/files/{file.id}/content") as slow:
        assert (await echo.client.get("/live")).status_code == 200
        assert sum([len(piece) async for piece in slow.aiter_bytes()]) == 20 << 20
    async with echo.client.stream("GET", f"/v1/files/{file.id}/content") as left:
        assert left.status_code == 200
    head = await echo.client.head(f"/v1/files/{file.id}/content")
    assert (head.status_code, head.content) == (200, b"")
    assert (await sdk.files.delete(file.id)).deleted


async def test_a_body_in_pieces_holds_its_client_back():
    calls = []
    body = BodyStream(lambda: calls.append("pause"), lambda: calls.append("resume"))
    for _ in range(3):
        body.feed(bytes(1 << 20))
    assert calls == ["pause"]
    assert len(await body.read()) == 3 << 20
    assert calls == ["pause", "resume"]
    body.end()
    assert await body.read() == b""
    body.lose()
    with pytest.raises(Cancelled):
        await body.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full (Linux)")
def test_a_full_disk_is_told():
    with pytest.raises(OSError, match="No space") as caught, Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    error = disk_error(caught.value, "the upload")
    assert isinstance(error, StorageFull)
    assert (error.http_status, error.code) == (507, "storage_full")


async def test_an_upload_never_writes_over_what_is_there(tmp_path):
    body = BodyStream(lambda: None, lambda: None)
    body.end()
    (tmp_path / "there").write_bytes(b"x")
    with pytest.raises(EngineError, match="the upload cannot be written"):
        await receive(FORM, body, tmp_path / "there")


async def test_a_full_database_is_told(tmp_path):
    database = Database(tmp_path / "db", FILES_SCHEMA + BATCHES, what="files", hint="")
    space = FileSpace(database, tmp_path / "files", 10_000, 1 << 30)
    await database.run(lambda connection: connection.execute("PRAGMA max_page_count = 8"))

    async def fill():
        for number in range(1000):
            await space.add(FileRecord(f"file-{number}", "", "batch", "f" * 200, 1, 0.0, 1.0))

    with pytest.raises(StorageFull, match="no room for files"):
        await fill()
    await database.close()


@pytest.fixture
async def two_processes(tmp_path):
    """The spaces of two processes with one directory, for 3 files with 1000 bytes, and the time of both."""
    now = [1_000_000.0]
    async with contextlib.AsyncExitStack() as stack:
        spaces = []
        for _ in range(2):
            database = Database(tmp_path / "db", FILES_SCHEMA + BATCHES, what="files", hint="")
            stack.push_async_callback(database.close)
            spaces.append(FileSpace(database, tmp_path / "files", 3, 1000, clock=lambda: now[0]))
        yield *spaces, now


async def test_uploads_at_two_processes_stay_within_the_bounds_together(two_processes):
    one, other, now = two_processes
    async with one.uploading(300) as first, other.uploading(0) as second:
        await second.take(700)
        for upload in (first.take(301), second.take(701)):
            with pytest.raises(StorageFull):
                await upload
        await second.take(700)
        await other.add(FileRecord("a", "", "batch", "f", 700, now[0], 2e9), second)
        with pytest.raises(StorageFull):
            await other.add(FileRecord("b", "", "batch", "f", 301, now[0], 2e9))
        await other.add(FileRecord("b", "", "batch", "f", 0, now[0], 2e9))
        with pytest.raises(StorageFull):  # the first upload is going to be the third file
            await other.add(FileRecord("c", "", "batch", "f", 0, now[0], 2e9))
    await other.add(FileRecord("c", "", "batch", "f", 300, now[0], 2e9))


async def test_what_a_killed_process_reserved_is_free_after_a_while(two_processes):
    one, other, now = two_processes
    async with one.uploading(1000) as slow:
        for _ in range(3):
            now[0] += 100
            await slow.take(10)
            with pytest.raises(StorageFull):
                await other.uploading(1).__aenter__()
        now[0] += 130
        async with other.uploading(1000):
            pass


async def test_old_files_and_orphans_go(tmp_path):
    now = [1_000_000.0]
    database = Database(tmp_path / "db", FILES_SCHEMA + BATCHES, what="files", hint="")
    space = FileSpace(database, tmp_path / "files", 10, 1000, clock=lambda: now[0])
    for name, expires in (("old", 1_000_010.0), ("busy", 1_000_010.0), ("new", 2_000_000.0)):
        space.path(name).write_bytes(b"x")
        await space.add(FileRecord(name, "", "batch", "f", 1, now[0], expires))
    space.path("orphan").write_bytes(b"x")
    space.path("being-written").write_bytes(b"x")
    os.utime(space.path("orphan"), (0, 0))
    await database.run(lambda connection: connection.execute("INSERT INTO batches VALUES ('busy', NULL)"))
    now[0] += 20
    await space.tidy()
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["being-written", "busy", "new"]
    await database.close()


async def test_forms_come_in_any_pieces(echo, tmp_path):
    body = (PURPOSE + part("file", "line\r\n--\r\n-b", "f") + "--b--\r\n").encode()

    async def pieces():
        for index in range(len(body)):
            yield body[index : index + 1]

    answer = await echo.client.post("/v1/files", content=pieces(), headers={"content-type": FORM})
    assert answer.json()["bytes"] == len("line\r\n--\r\n-b")
    assert kept(tmp_path)[0].read_bytes() == b"line\r\n--\r\n-b"
