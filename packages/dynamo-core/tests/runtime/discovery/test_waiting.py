"""What ends a wait of file discovery, and what does not."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dynamo.runtime.discovery import process
from dynamo.runtime.discovery.waiting import Wait

#: Far more than anything here takes; a wait that nothing ends fails its test by its answer.
LONG_SECONDS = 20.0

linux_only = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells of changes and ends")


@pytest.fixture
def wait():
    made = Wait()
    yield made
    made.close()


@pytest.fixture
def child():
    process_ = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process_
    process_.kill()
    process_.communicate()


def owner_of(pid):
    return pid, process.process_start(pid)


def test_nothing_happens(wait, tmp_path):
    wait.for_changes(tmp_path)
    assert not wait(0.01)


@linux_only
def test_names_that_come_go_and_are_replaced(wait, tmp_path):
    kept = tmp_path / "kept"
    kept.touch()
    assert wait.for_changes(tmp_path)
    for change in (
        lambda: (tmp_path / "new").touch(),
        lambda: (tmp_path / "new").replace(kept),
        kept.unlink,
    ):
        change()
        assert wait(LONG_SECONDS)
        assert not wait(0.0), "one change ends one wait"


@linux_only
def test_heartbeats_end_no_wait(wait, tmp_path):
    (tmp_path / "lease").touch()
    wait.for_changes(tmp_path)
    os.utime(tmp_path / "lease")
    assert not wait(0.01)


@linux_only
def test_a_directory_that_is_made_again(wait, tmp_path):
    directory = tmp_path / "d"
    assert not wait.for_changes(directory)
    directory.mkdir()
    assert wait.for_changes(directory)
    directory.rmdir()
    assert wait(LONG_SECONDS)
    directory.mkdir()
    assert wait.for_changes(directory)
    (directory / "new").touch()
    assert wait(LONG_SECONDS)


@linux_only
def test_a_process_that_ends_and_is_not_reaped(wait, child):
    assert wait.for_ends({owner_of(child.pid)})
    assert not wait(0.0)
    child.stdin.close()
    assert wait(LONG_SECONDS)
    assert not process.runs(child.pid, "whenever")


@linux_only
def test_a_process_that_is_followed_no_more(wait, child):
    wait.for_ends({owner_of(child.pid)})
    assert wait.for_ends(frozenset())
    child.kill()
    child.wait()
    assert not wait(0.0)


def test_a_process_that_nobody_can_be_told_of(wait):
    assert not wait.for_ends({(2**31 - 1, "1")})


def test_another_thread_ends_this_wait_and_all_that_follow(wait):
    thread = threading.Thread(target=wait.wake)
    thread.start()
    assert wait(LONG_SECONDS)
    thread.join()
    assert wait(LONG_SECONDS)


def test_descriptors_are_given_back(child, tmp_path):
    def descriptors():
        return len(list(Path("/dev/fd").iterdir()))

    before = descriptors()
    wait = Wait()
    wait.for_changes(tmp_path)
    wait.for_ends({owner_of(child.pid)})
    assert descriptors() > before
    wait.close()
    assert descriptors() == before
