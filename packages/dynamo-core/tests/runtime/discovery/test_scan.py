"""Which leases hold, with the scanner's clock in the test's hand."""

import os
import time

import msgspec
import pytest

from dynamo.errors import DiscoveryError
from dynamo.runtime.discovery import process
from dynamo.runtime.discovery.lease_file import Lease, file_name, touch, write_lease
from dynamo.runtime.discovery.scan import LeaseScanner


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "leases"


@pytest.fixture
def scanner(directory, clock):
    directory.mkdir(mode=0o700)
    return LeaseScanner(directory, clock=clock)


@pytest.fixture
def put(directory, record):
    def write(instance_id, *, host=None, pid=None, start=None, seconds=10.0):
        pid = os.getpid() if pid is None else pid
        start = process.process_start(os.getpid()) if start is None else start
        lease = Lease(record(instance_id), host or process.host_identity(), pid, start, seconds)
        name = file_name(lease.record)
        return directory / name, write_lease(directory, name, msgspec.json.encode(lease))

    return write


def ids(records):
    return [key.instance_id for key in records]


def test_a_lease_without_heartbeat_runs_out_and_its_file_is_removed(scanner, clock, put):
    path, _ = put(1)
    assert ids(scanner.scan()) == [1]
    clock.now += 9.9
    assert ids(scanner.scan()) == [1]
    clock.now += 0.2
    assert ids(scanner.scan()) == []
    assert not path.exists()


def test_a_heartbeat_renews(scanner, clock, put):
    path, written = put(1)
    scanner.scan()
    for _ in range(3):
        clock.now += 8
        written = touch(path, written)
        assert ids(scanner.scan()) == [1]


def test_a_heartbeat_that_is_seen_late_counts_from_when_it_was_made(scanner, clock, put):
    path, _ = put(1)
    scanner.scan()
    clock.now += 8
    os.utime(path, (time.time() - 3,) * 2)
    assert ids(scanner.scan()) == [1]
    clock.now += 6
    assert ids(scanner.scan()) == [1]
    clock.now += 1.5
    assert ids(scanner.scan()) == []


def test_a_heartbeat_of_a_clock_that_jumped_counts_from_the_look_before_it(scanner, clock, put):
    path, _ = put(1)
    scanner.scan()
    for jump in range(5):
        clock.now += 8
        os.utime(path, (time.time() - 1e6 + jump,) * 2)
        scanner.scan()
        clock.now += 1.5
        assert ids(scanner.scan()) == [1]


def test_the_next_scan_is_due_with_the_next_heartbeat_or_the_end_of_a_lease(scanner, clock, put):
    put(1, seconds=8)
    scanner.scan()
    assert scanner.due_seconds == pytest.approx(2)
    clock.now += 7
    scanner.scan()
    assert scanner.due_seconds == pytest.approx(1)


def test_who_is_asked_about_and_whether_other_hosts_take_part(scanner, put):
    put(1)
    parent = os.getppid()
    put(2, pid=parent, start=process.process_start(parent))
    scanner.scan()
    assert scanner.owners == {(parent, process.process_start(parent))}
    assert scanner.only_local
    put(3, host="elsewhere")
    scanner.scan()
    assert not scanner.only_local


def test_touch_refuses_another_file(put):
    path, written = put(1)
    _, newer = put(1)
    assert touch(path, written) is None
    assert touch(path, newer) is not None
    path.unlink()
    assert touch(path, newer) is None


def test_a_jump_of_the_wall_clock_expires_nothing_of_this_host(scanner, put):
    path, _ = put(1)
    os.utime(path, (time.time() - 1e6,) * 2)
    assert ids(scanner.scan()) == [1]


def test_another_hosts_old_file_gets_no_new_lease(scanner, put):
    stale, _ = put(1, host="elsewhere")
    os.utime(stale, (time.time() - 11,) * 2)
    put(2, host="elsewhere")
    assert ids(scanner.scan()) == [2]
    assert not stale.exists()


def test_another_hosts_clock_may_be_ahead(scanner, clock, put):
    path, _ = put(1, host="elsewhere")
    os.utime(path, (time.time() + 1e6,) * 2)
    assert ids(scanner.scan()) == [1]
    clock.now += 11
    assert ids(scanner.scan()) == []


def test_an_ended_process_and_a_reused_process_id_hold_nothing(scanner, put):
    put(1, start="1")
    put(2, pid=2**31 - 1)
    put(3)
    assert ids(scanner.scan()) == [3]


def test_other_hosts_process_ids_are_not_asked_for(scanner, put):
    put(1, host="elsewhere", pid=2**31 - 1)
    assert ids(scanner.scan()) == [1]


def test_records_missing_from_a_new_directory_stay_for_one_lease(scanner, directory, clock, put):
    put(1)
    put(2, host="elsewhere")
    scanner.scan()
    directory.rename(directory.with_name("old"))
    with pytest.raises(DiscoveryError, match="cannot read"):
        scanner.scan()
    clock.now += 5
    put(2, host="elsewhere")
    assert ids(scanner.scan()) == [1, 2]
    clock.now += 4
    assert ids(scanner.scan()) == [1, 2]
    clock.now += 2
    assert ids(scanner.scan()) == [2]


def test_a_removed_file_of_the_same_directory_is_gone_at_once(scanner, put):
    path, _ = put(1)
    scanner.scan()
    path.unlink()
    assert ids(scanner.scan()) == []


def test_a_lost_lease_whose_file_cannot_be_removed_stays_lost(scanner, clock, put):
    path, _ = put(1)
    scanner.scan()
    path.unlink()
    path.mkdir()  # unlink fails on it
    assert ids(scanner.scan()) == [1]
    clock.now += 11
    for _ in range(2):
        assert ids(scanner.scan()) == []


def test_process_start_of_nobody():
    with pytest.raises(ProcessLookupError):
        process.process_start(2**31 - 1)
    assert not process.runs(os.getpid(), "another time")
    assert process.runs(os.getpid(), process.process_start(os.getpid()))
