"""Discovery fails under load: what is known stays in use, and everybody is back by himself afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.load import STREAMS
from tests.chaos.test_workers import PACE, idle
from tests.e2e.processes import deployment, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_the_discovery_directory_is_removed(deploy, record, start_load):
    workers = [deploy.worker(*PACE) for _ in range(2)]
    frontend = deploy.frontend()
    deploy.until_serving(frontend, workers=2)
    load = start_load([frontend.url])
    await load.until_all_stream()
    load.fault()
    directory = Path(deploy.env["DYN_STATE_DIR"]) / "discovery"
    shutil.rmtree(directory)
    await asyncio.to_thread(wait_until, lambda: len(list(directory.glob("*.json"))) == 2, "both records", *workers)
    late = deploy.frontend()
    await asyncio.to_thread(deploy.until_serving, late, 2)
    assert len(frontend.instances()) == 2
    report = record(await load.finish())
    assert report.counts() == (0, 0, 0, 0), report


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "none", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free; the file that takes them all."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    assert shutil.disk_usage(disk).free == 0
    return filler


async def test_the_disk_of_discovery_is_full(tmp_path, small_disk, record, start_load):
    """Leases are renewed without writing; only a newcomer cannot register, and says so."""
    with deployment(tmp_path, {"DYN_DISCOVERY_BACKEND": f"file://{small_disk}/discovery"}) as deploy:
        workers = [deploy.worker(*PACE) for _ in range(2)]
        frontend = deploy.frontend()
        deploy.until_serving(frontend, workers=2)
        load = start_load([frontend.url])
        await load.until_all_stream()
        load.fault()
        filler = fill(small_disk)
        newcomer = deploy.worker(*PACE)
        assert await asyncio.to_thread(newcomer.wait) == 1
        assert "No space left on device" in newcomer.text()
        assert "Traceback" not in newcomer.text()
        await load.until_completed(2 * STREAMS)
        assert len(frontend.instances()) == 2
        workers[0].kill()
        await asyncio.to_thread(deploy.until_serving, frontend, 1)
        filler.unlink()
        newcomer.start()
        await asyncio.to_thread(deploy.until_serving, frontend, 2)
        report = record(await load.finish())
        assert report.counts() == (0, 0, 0, 0), report
        await idle(workers[1], newcomer)


async def test_a_frontend_starts_while_the_disk_of_its_cache_is_full(tmp_path, small_disk):
    """What it has fetched and verified it uses, whether it can keep it or not."""
    cache = small_disk / "artifacts"
    cache.mkdir()
    with deployment(tmp_path) as deploy:
        deploy.worker(*PACE)
        fill(small_disk)
        frontend = deploy.frontend("--artifact-cache-dir", str(cache))
        await asyncio.to_thread(deploy.until_serving, frontend)
        assert "No space left on device" in frontend.text()


@pytest.mark.parametrize("how", ["killed", pytest.param("hung", marks=pytest.mark.slow)])
async def test_etcd_is_away(tmp_path, etcd, record, long_run, how, start_load):
    """For 60 s in the long setting: no request fails, nobody is forgotten, a worker that dies meanwhile is left out."""
    with deployment(tmp_path, {"DYN_DISCOVERY_BACKEND": "etcd", "ETCD_ENDPOINTS": etcd.endpoint}) as deploy:
        workers = [deploy.worker(*PACE) for _ in range(3)]
        frontend = deploy.frontend()
        deploy.until_serving(frontend, workers=3)
        load = start_load([frontend.url])
        await load.until_all_stream()
        load.fault()
        (etcd.kill if how == "killed" else etcd.pause)()
        await asyncio.sleep(60 if long_run else 2)
        workers[0].kill()
        await load.until_completed(2 * STREAMS)
        assert len(frontend.instances()) == 3
        await asyncio.to_thread(etcd.start if how == "killed" else etcd.resume)
        await asyncio.to_thread(deploy.until_serving, frontend, 2)
        late = deploy.frontend()
        await asyncio.to_thread(deploy.until_serving, late, 2)
        report = record(await load.finish(), f"etcd is {how}")
        assert report.counts() == (0, 0, 0, 0), report
        await idle(*workers[1:])
