"""FileDiscovery between real processes."""

import signal

import pytest


@pytest.fixture
def start(tmp_path, owner_process):
    return lambda instance_id: owner_process(f"file://{tmp_path / 'd'}", instance_id)


async def test_a_killed_process_is_gone_and_a_stopped_one_withdraws(start, tmp_path, file_discovery, watch):
    first, second = start(1), start(2)
    reader = await file_discovery(tmp_path / "d")
    watcher = watch(reader)
    known = await watcher.snapshot()
    assert {i: r.transports for i, r in known.items()} == {i: {"tcp": "127.0.0.1:1"} for i in (1, 2)}
    first.send_signal(signal.SIGKILL)  # and nobody reaps it: it stays a zombie
    await watcher.until({2}, known)
    second.stdin.close()
    await watcher.until(set(), known)
    assert list((tmp_path / "d").iterdir()) == []


async def test_a_stopped_process_loses_its_lease_and_gets_it_back(start, tmp_path, file_discovery, watch):
    child = start(1)
    files = tmp_path / "d"
    reader = await file_discovery(files)
    watcher = watch(reader)
    known = await watcher.snapshot()
    child.send_signal(signal.SIGSTOP)
    for file in files.iterdir():
        file.unlink()  # as a reader does when the lease has run out
    await watcher.until(set(), known)
    child.send_signal(signal.SIGCONT)
    await watcher.until({1}, known)
