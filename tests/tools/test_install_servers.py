"""tools/servers/install.py: what is there is used, what cannot be had is said; nothing is downloaded here."""

import subprocess
import sys

import pytest

from tests.architecture.tree import ROOT

SCRIPT = ROOT / "tools" / "servers" / "install.py"


@pytest.fixture
def run(tmp_path):
    def install(*arguments, path):
        return subprocess.run(
            [sys.executable, SCRIPT, "--into", tmp_path / "servers", *arguments],
            env={"PATH": str(path)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return install


def program(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexit 100\n")
    path.chmod(0o755)
    return path


def test_a_program_on_path_is_used(run, tmp_path):
    found = program(tmp_path / "bin" / "etcd")
    done = run("etcd", path=tmp_path / "bin")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'servers'}\n", f"etcd: {found}\n")


def test_a_program_that_was_installed_before_is_used(run, tmp_path):
    found = program(tmp_path / "servers" / "nats-server")
    done = run("nats-server", path=tmp_path)
    assert (done.returncode, done.stderr) == (0, f"nats-server: {found}\n")


def test_without_apt_it_says_what_to_do(run, tmp_path):
    done = run("etcd", "nats-server", path=tmp_path)
    assert done.returncode == 1
    assert "apt-get is not on this machine; install etcd and put it on PATH" in done.stderr
    assert "install nats-server and put it on PATH" in done.stderr


def test_a_failed_download_is_shown_and_leaves_nothing(run, tmp_path):
    for tool in ("apt-get", "dpkg"):
        program(tmp_path / "bin" / tool)
    done = run("etcd", path=tmp_path / "bin")
    assert done.returncode == 1
    assert "apt-get" in done.stderr
    assert "failed" in done.stderr
    assert list((tmp_path / "servers").iterdir()) == []


def test_an_unknown_name_is_refused(run, tmp_path):
    done = run("redis", path=tmp_path)
    assert done.returncode == 2
    assert "cannot install redis" in done.stderr
