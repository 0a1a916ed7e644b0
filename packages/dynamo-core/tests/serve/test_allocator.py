import os
import socket

import pytest

from dynamo.errors import ConfigError
from dynamo.serve.allocator import GpuAllocator, check_port_free, free_port, visible_gpus


def test_free_port_can_be_listened_on():
    check_port_free("127.0.0.1", free_port())


def test_taken_port_names_the_flag_and_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: address already in use") as caught:
            check_port_free("127.0.0.1", port)
    assert caught.value.param == "--port"
    assert f"lsof -i :{port}" in caught.value.hint


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_address_of_another_machine_names_the_flag(host):
    with pytest.raises(ConfigError, match="cannot listen on") as caught:
        check_port_free(host, 0)
    assert caught.value.param == "--host"


def test_gpus_are_exclusive_and_come_back_in_order():
    gpus = GpuAllocator(["0", "1", "2"])
    first = gpus.take(2, component="worker")
    assert first == ["0", "1"]
    with pytest.raises(ConfigError, match="prefill needs 2 GPUs; 1 of 3 are free"):
        gpus.take(2, component="prefill")
    gpus.give_back(first)
    assert gpus.take(3, component="prefill") == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("value", "expected"), [("", []), ("-1", []), ("3, 1", ["3", "1"]), ("GPU-8f2c,GPU-11", ["GPU-8f2c", "GPU-11"])]
)
def test_the_users_choice_of_gpus_is_respected(monkeypatch, value, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == expected


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def install(script):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    return install


def test_gpus_are_asked_of_the_driver(nvidia_smi):
    nvidia_smi("printf '0\\n1\\n'")
    assert visible_gpus() == ["0", "1"]


def test_a_broken_driver_is_no_gpu(nvidia_smi):
    nvidia_smi("echo 'No devices were found'; exit 6")
    assert visible_gpus() == []
