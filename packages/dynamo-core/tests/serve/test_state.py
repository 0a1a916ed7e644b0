import os
import stat

import pytest

from dynamo.errors import ConfigError
from dynamo.serve.scheduler import LocalScheduler
from dynamo.serve.state import new_run_directory, running


def test_run_directories_are_private_and_fresh(tmp_path):
    one, other = new_run_directory(str(tmp_path)), new_run_directory(str(tmp_path))
    assert one != other
    assert stat.S_IMODE(one.stat().st_mode) == 0o700
    assert list(one.iterdir()) == []


def test_what_dead_runs_left_is_removed(tmp_path):
    dead = new_run_directory(str(tmp_path))
    (dead / "lock").touch()
    os.utime(dead, (1, 1))
    young = new_run_directory(str(tmp_path))
    assert not dead.exists()
    assert young.exists()


async def test_what_lives_is_kept_and_found(tmp_path, component):
    run = new_run_directory(str(tmp_path))
    scheduler = LocalScheduler(run)
    await scheduler.apply([component()])
    os.utime(run, (1, 1))
    new_run_directory(str(tmp_path))
    assert running(str(tmp_path)) == [run]
    assert running(str(run)) == [run]
    await scheduler.close()
    assert running(str(tmp_path)) == []


def test_state_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot use state directory .*file: Not a directory") as caught:
        new_run_directory(str(tmp_path / "file"))
    assert caught.value.param == "--state-dir"
