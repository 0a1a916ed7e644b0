"""FileDiscovery with real files: modes, bad neighbours, and a directory that goes away."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import stat
import subprocess
import time

import pytest

from dynamo.errors import ConfigError, DiscoveryError
from dynamo.runtime.discovery.file import FileDiscovery


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "state" / "discovery"


@pytest.fixture
def full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with contextlib.suppress(OSError), (tmp_path / "filler").open("wb", 0) as filler:
            while True:
                filler.write(bytes(4096))
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


async def test_files_and_directories_are_private(file_discovery, directory, record):
    discovery = await file_discovery()
    await discovery.register(record(0xAB))
    (file,) = directory.iterdir()
    assert file.name == "ns.worker.generate.000000000000ab.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o700


async def test_close_leaves_no_file(file_discovery, directory, record):
    discovery = await file_discovery()
    await discovery.register(record(1))
    await discovery.close()
    assert list(directory.iterdir()) == []


async def test_use_after_close_says_so(file_discovery, record):
    discovery = await file_discovery()
    await discovery.close()
    with pytest.raises(DiscoveryError, match="closed"):
        await discovery.register(record(1))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
async def test_a_full_disk_says_what_to_do(full_disk, record):
    discovery = FileDiscovery(f"file://{full_disk}")
    await discovery.start()
    with pytest.raises(DiscoveryError, match="No space left on device") as caught:
        await discovery.register(record(1))
    assert "make room on its disk" in caught.value.hint
    assert "DYN_STATE_DIR" in caught.value.hint
    await discovery.close()


async def test_refuses_a_directory_that_others_can_write_to(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(DiscoveryError, match="other users can write") as caught:
        await FileDiscovery(f"file://{tmp_path}").start()
    assert caught.value.hint == f"chmod 700 {tmp_path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
async def test_refuses_another_users_directory(tmp_path, file_discovery, record):
    discovery = await file_discovery(tmp_path / "theirs")
    await discovery.register(record(1))
    os.chown(tmp_path / "theirs", 12345, -1)
    with pytest.raises(DiscoveryError, match="belongs to user 12345"):
        await FileDiscovery(f"file://{tmp_path / 'theirs'}").start()
    with pytest.raises(DiscoveryError, match="belongs to user 12345"):
        await discovery.register(record(2))
    with pytest.raises(DiscoveryError, match="belongs to user 12345"):
        await discovery.list()
    os.chown(tmp_path / "theirs", 0, -1)
    assert len(await discovery.list()) == 1


async def test_refuses_a_path_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(DiscoveryError, match="cannot use discovery directory"):
        await FileDiscovery(f"file://{tmp_path / 'f' / 'd'}").start()


async def test_refuses_ids_that_json_readers_would_round(file_discovery, record):
    with pytest.raises(ConfigError, match="instance id"):
        await (await file_discovery()).register(record(2**53))


async def test_a_failed_first_registration_is_raised_and_forgotten(file_discovery, directory, record):
    discovery = await file_discovery()
    directory.rmdir()
    directory.write_text("in the way")
    with pytest.raises(DiscoveryError, match=str(directory)):
        await discovery.register(record(1))
    directory.unlink()
    await discovery.register(record(2))
    assert [r.instance_id for r in await discovery.list()] == [2]


BAD_FILES = {
    "ns.worker.generate.00000000000001.json": b"",
    "ns.worker.generate.00000000000002.json": b"{",
    "ns.worker.generate.00000000000003.json": b"\x80\x04\x95\x00.",
    "ns.worker.generate.00000000000004.json": b'{"record": {"namespace": 1}}',
    "ns.worker.generate.00000000000005.json": b" " * (1024 * 1024 + 1),
    "ns.worker.generate.00000000000006.json": b"[" * 100_000,
    "ns.worker.generate.00000000000007.json": b'{"unknown": ' + b"[" * 100_000,
    "ns.worker.generate.00000000000008.json": b'{"record": {"namespace": "\xff"}}',
    "hello.json": b"null",
}


async def test_bad_files_are_ignored_with_one_warning_each(file_discovery, directory, record, caplog):
    discovery = await file_discovery()
    await discovery.register(record(9))
    good = next(directory.iterdir()).read_bytes()
    misplaced = "other.worker.generate.00000000000009.json"
    for name, content in {**BAD_FILES, misplaced: good}.items():
        (directory / name).write_bytes(content)
    (directory / "notes.txt").write_text("not ours")
    (directory / "ns.worker.generate.0000000000000a.json").symlink_to("/etc/passwd")
    (directory / "ns.worker.generate.0000000000000b.json").mkdir()
    os.mkfifo(directory / "ns.worker.generate.0000000000000c.json")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [r.instance_id for r in await discovery.list()] == [9]
    warned = [message.split(":")[0].rpartition("/")[2] for message in caplog.messages]
    odd = [f"ns.worker.generate.0000000000000{digit}.json" for digit in "abc"]
    assert sorted(warned) == sorted([*BAD_FILES, misplaced, *odd])


async def test_out_of_range_leases_are_ignored(file_discovery, directory, record):
    discovery = await file_discovery()
    await discovery.register(record(1))
    (file,) = directory.iterdir()
    for field, value in (("seconds", 0), ("seconds", 1e9), ("pid", -1), ("pid", 2**40)):
        lease = json.loads(file.read_bytes())
        lease[field] = value
        lease["record"]["instance_id"] = 2
        (directory / file.name.replace("1.json", "2.json")).write_text(json.dumps(lease))
        assert [r.instance_id for r in await discovery.list()] == [1], (field, value)


async def test_a_damaged_file_keeps_the_last_good_record_and_is_repaired(file_discovery, directory, record, watch):
    owner = await file_discovery(lease_seconds=0.8)
    reader = await file_discovery()
    await owner.register(record(1))
    watcher = watch(reader)
    known = await watcher.snapshot()
    (file,) = directory.iterdir()
    good = file.read_bytes()
    file.write_bytes(b"{")
    assert [r.instance_id for r in await reader.list()] == [1]
    await owner.register(record(2))
    await watcher.until({1, 2}, known)
    await wait_until(lambda: file.read_bytes() == good)


async def test_a_removed_directory_deletes_nothing_and_is_made_again(file_discovery, directory, record, watch, caplog):
    owner = await file_discovery(lease_seconds=1.0)
    reader = await file_discovery()
    await owner.register(record(1))
    await owner.register(record(2))
    watcher = watch(reader)
    known = await watcher.snapshot()
    shutil.rmtree(directory)
    assert [r.instance_id for r in await reader.list()] == [1, 2]
    await wait_until(lambda: directory.is_dir() and len(list(directory.glob("*.json"))) == 2)
    await owner.register(record(3))
    event = await watcher.next()
    assert (event.kind, event.record.instance_id) == ("put", 3)
    await watcher.until({1, 2, 3}, known | {3: event.record})


async def test_registrations_are_repeated_until_they_hold(file_discovery, directory, record, caplog):
    owner = await file_discovery(lease_seconds=0.4)
    await owner.register(record(1))
    shutil.rmtree(directory)
    directory.write_text("in the way")
    with caplog.at_level(logging.INFO):
        await wait_until(lambda: any("repeated until they hold" in message for message in caplog.messages))
        directory.unlink()
        await wait_until(lambda: "discovery works again" in caplog.messages)
    assert [r.instance_id for r in await owner.list()] == [1]
    assert sum("repeated until they hold" in message for message in caplog.messages) == 1


async def test_one_lease_that_cannot_be_renewed_does_not_stop_the_others(file_discovery, directory, record):
    owner = await file_discovery(lease_seconds=0.4)
    await owner.register(record(1))
    await owner.register(record(2))
    blocked, free = sorted(directory.iterdir())
    blocked.unlink()
    blocked.mkdir()
    free.unlink()
    await wait_until(free.is_file)
    assert blocked.is_dir()


async def test_list_without_any_knowledge_raises(file_discovery, directory):
    discovery = await file_discovery()
    directory.rmdir()
    with pytest.raises(DiscoveryError, match="cannot read"):
        await discovery.list()


async def test_a_watch_that_begins_in_an_outage_waits_for_its_end(file_discovery, directory, record, watch):
    reader = await file_discovery()
    directory.rmdir()
    directory.write_text("in the way")
    watcher = watch(reader)
    first = asyncio.create_task(watcher.next())
    with pytest.raises(DiscoveryError):
        await reader.list()
    assert not first.done()
    directory.unlink()
    await (await file_discovery()).register(record(1))
    event = await first
    assert event.kind in ("put", "synced")


async def test_start_sweeps_what_dead_writers_left(file_discovery, directory):
    await file_discovery()
    old, fresh = directory / ".ns.w.e.1.json.0a.tmp", directory / ".ns.w.e.2.json.0b.tmp"
    old.write_text("half")
    fresh.write_text("half")
    os.utime(old, (time.time() - 3600,) * 2)
    await file_discovery()
    assert [path.name for path in directory.iterdir()] == [fresh.name]


async def wait_until(condition):
    async def poll():
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), 20)
