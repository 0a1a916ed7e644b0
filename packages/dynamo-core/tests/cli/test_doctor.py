import json
import os
import resource
import socket
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

from dynamo.cli.checks import CHECKS, environment, machine, services
from dynamo.cli.doctor import doctor
from dynamo.testing.servers import NatsServer


def levels(findings):
    return [finding.level for finding in findings]


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Makes distributions by their metadata alone."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, version):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return install


@pytest.fixture
def server():
    """A TCP server that greets each client with given bytes."""
    servers = []

    def start(greeting):
        listener = socket.create_server(("127.0.0.1", 0))
        servers.append(listener)

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(greeting)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in servers:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_every_finding_that_is_not_ok_has_a_fix():
    for check in CHECKS:
        findings = list(check())
        assert findings, check.__name__
        assert all(finding.found for finding in findings)
        assert all(finding.fix for finding in findings if finding.level != "ok")


def test_report_and_exit_code(monkeypatch, closed_port):
    monkeypatch.setenv("ETCD_ENDPOINTS", f"http://127.0.0.1:{closed_port}")
    done = CliRunner().invoke(doctor, [])
    assert done.exit_code == 1
    assert f"fail  etcd: http://127.0.0.1:{closed_port}: connection refused\n      fix: start etcd" in done.output
    assert done.output.splitlines()[-1].endswith("1 failed")


def test_json(monkeypatch):
    monkeypatch.delenv("ETCD_ENDPOINTS", raising=False)
    done = CliRunner().invoke(doctor, ["--json"])
    document = json.loads(done.output)
    assert document["healthy"] is (done.exit_code == 0)
    assert {finding["check"] for finding in document["findings"]} >= {"python", "packages", "gpu", "port", "nats"}


def test_packages_of_one_series_fit(distribution):
    core = environment._version("dynamo-core")
    distribution("dynamo-planner", core)
    [finding] = environment.check_packages()
    assert finding.level == "ok"
    assert f"dynamo-planner {core}" in finding.found


def test_packages_of_another_series_do_not_fit(distribution):
    distribution("dynamo-backend-vllm", "7.0.0")
    [finding] = environment.check_packages()
    assert finding.level == "fail"
    assert "dynamo-backend-vllm and dynamo-core" in finding.found
    assert finding.fix == "pip install --upgrade dynamo-backend-vllm dynamo-core"


@pytest.mark.parametrize(
    ("version", "series"), [("0.1.0", ("0", "1")), ("0.2.9", ("0", "2")), ("1.4.0", ("1",)), ("2.0", ("2",))]
)
def test_series(version, series):
    assert environment._series(version) == series


def test_upstream_distributions_clash(distribution):
    assert levels(environment.check_upstream_clash()) == ["ok"]
    distribution("ai-dynamo-runtime", "0.8.1")
    [finding] = environment.check_upstream_clash()
    assert finding.level == "fail"
    assert "ai-dynamo-runtime 0.8.1" in finding.found
    assert "pip uninstall" in finding.fix


@pytest.mark.parametrize("stray", ["dynamo.py", "dynamo/__init__.py"])
def test_files_that_hide_the_namespace(tmp_path, monkeypatch, stray):
    monkeypatch.chdir(tmp_path)
    assert levels(environment.check_namespace()) == ["ok"]
    (tmp_path / stray).parent.mkdir(exist_ok=True)
    (tmp_path / stray).touch()
    [finding] = environment.check_namespace()
    assert finding.level == "fail"
    assert str(tmp_path / stray) in finding.found


def test_directory_called_dynamo_is_no_problem(tmp_path, monkeypatch):
    (tmp_path / "dynamo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert levels(environment.check_namespace()) == ["ok"]


def test_engines_by_metadata(distribution):
    def finding():
        # vLLM's plugin is a member of the workspace, and so perhaps installed; that of TensorRT-LLM is not.
        return next(finding for finding in environment.check_engines() if "ensor" in finding.check + finding.found)

    assert "TensorRT-LLM is not installed" in finding().found
    distribution("tensorrt-llm", "1.1.0")
    assert (finding().level, finding().found, finding().fix) == (
        "warn",
        "tensorrt-llm 1.1.0, but not its plugin",
        "pip install dynamo-backend-trtllm",
    )
    distribution("dynamo-backend-trtllm", "0.1.0")
    assert (finding().level, finding().found) == ("ok", "tensorrt-llm 1.1.0")
    assert "tensorrt_llm" not in sys.modules


def test_fast_tokenizer(distribution, monkeypatch):
    distribution("fastokens", "9.9.9")
    (found,) = environment.check_fast_tokenizer()
    assert (found.level, found.found.partition(":")[0]) == ("ok", "fastokens 9.9.9")
    monkeypatch.setattr("sys.path", [])
    (missing,) = environment.check_fast_tokenizer()
    assert (missing.level, missing.fix) == ("warn", "pip install 'dynamo-core[fastokens]'")
    assert "long" in missing.found


def test_broken_plugin_is_a_warning(tmp_path):
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no driver')")
    info = tmp_path / "broken-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[dynamo]\nbroken = broken_plugin\n")
    done = subprocess.run(
        [sys.executable, "-m", "dynamo.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    [warning] = [f for f in json.loads(done.stdout)["findings"] if f["check"] == "plugins" and f["level"] == "warn"]
    assert warning["found"] == "broken 1.2 is not used: RuntimeError: no driver"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def install(script):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return install


def test_gpus_are_listed(nvidia_smi):
    nvidia_smi("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1234)'")
    [finding] = machine.check_gpus()
    assert (finding.level, finding.found) == ("ok", "GPU 0: NVIDIA H200")


def test_broken_driver(nvidia_smi):
    nvidia_smi("echo 'Failed to initialize NVML' >&2; exit 9")
    [finding] = machine.check_gpus()
    assert (finding.level, finding.found) == ("warn", "nvidia-smi finds none: Failed to initialize NVML")
    assert "--gpus all" in finding.fix


def test_tool_that_cannot_be_run(nvidia_smi, tmp_path):
    nvidia_smi("")
    (tmp_path / "nvidia-smi").write_text("#!/no/such/interpreter\n")
    [finding] = machine.check_gpus()
    assert finding.level == "warn"
    assert "cannot be run" in finding.found


def test_taken_port():
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", 8000))
        except OSError:
            pytest.skip("port 8000 is in use on this machine")
        server.listen()
        [finding] = machine.check_port()
    assert (finding.level, finding.found) == ("warn", "8000: address already in use")
    assert "dynamo serve --port" in finding.fix


def test_state_directory_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("DYN_STATE_DIR", "/proc/dynamo")
    [finding] = machine.check_state_directory()
    assert finding.level == "fail"
    assert finding.found.startswith("/proc/dynamo cannot be written")
    assert "DYN_STATE_DIR" in finding.fix


def test_few_file_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        [finding] = machine.check_file_descriptors()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert finding.level == "warn"
    assert finding.found.startswith("1024 (")


def test_model_cache(monkeypatch, tmp_path):
    (tmp_path / "hub" / "models--Qwen--Qwen3-0.6B").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    [finding] = machine.check_model_cache()
    assert finding.level == "ok"
    assert finding.found.startswith(f"1 models in {tmp_path / 'hub'}, ")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [finding] = machine.check_model_cache()
    assert finding.level == "warn"
    assert "HF_HUB_OFFLINE" in finding.fix


def test_etcd_endpoints_are_all_asked(monkeypatch, server, closed_port):
    monkeypatch.setenv("ETCD_ENDPOINTS", f"http://{server(b'')}, 127.0.0.1:{closed_port}, http://")
    assert levels(services.check_etcd()) == ["ok", "fail", "fail"]


@pytest.fixture(scope="module")
def nats_with_password(nats_server):
    """A NATS server that lets in `user` with the password `secret`; its address."""
    with NatsServer(arguments=["--user=user", "--pass=secret"]) as server:
        yield server.url.removeprefix("nats://")


@pytest.mark.parametrize("variable", ["NATS_URL", "NATS_SERVER"])
def test_nats_lets_us_in(monkeypatch, nats_with_password, variable):
    monkeypatch.delenv("NATS_URL", raising=False)
    monkeypatch.setenv(variable, f"nats://user:secret@{nats_with_password}")
    [finding] = services.check_nats()
    assert (finding.level, finding.found) == ("ok", f"{nats_with_password} answers")


@pytest.mark.parametrize("password", ["wrong", ""])
def test_nats_that_refuses_us(monkeypatch, nats_with_password, password):
    monkeypatch.setenv("NATS_URL", f"nats://{nats_with_password}")
    monkeypatch.setenv("NATS_USER", "user")
    monkeypatch.setenv("NATS_PASSWORD", password)
    [finding] = services.check_nats()
    assert finding.level == "fail"
    assert "uthorization" in finding.found
    assert "NATS_PASSWORD" in finding.fix
    monkeypatch.setenv("NATS_PASSWORD", "secret")
    assert levels(services.check_nats()) == ["ok"]


def test_nats_with_credentials_that_cannot_be_read(monkeypatch, nats_with_password, tmp_path):
    monkeypatch.setenv("NATS_URL", f"nats://{nats_with_password}")
    monkeypatch.setenv("NATS_CREDS", str(tmp_path / "none.creds"))
    [finding] = services.check_nats()
    assert finding.level == "fail"
    assert "none.creds" in finding.found
    assert "NATS_CREDS" in finding.fix


def test_nats_that_does_not_go_on(monkeypatch, server):
    monkeypatch.setenv("NATS_URL", server(b"INFO {}\r\n"))
    [finding] = services.check_nats()
    assert finding.level == "fail"
    assert "refuses this process" in finding.found


def test_nats_that_is_something_else(monkeypatch, server):
    monkeypatch.setenv("NATS_URL", server(b"SSH-2.0"))
    [finding] = services.check_nats()
    assert finding.level == "fail"
    assert "is not NATS" in finding.found
    assert "NATS_URL" in finding.fix


def test_nats_that_is_down(monkeypatch, closed_port):
    monkeypatch.setenv("NATS_URL", f"nats://user:secret@127.0.0.1:{closed_port}")
    [finding] = services.check_nats()
    assert finding.level == "fail"
    assert finding.found == f"127.0.0.1:{closed_port}: connection refused"


def test_services_that_are_not_configured(monkeypatch):
    for name in ("ETCD_ENDPOINTS", "NATS_URL", "NATS_SERVER"):
        monkeypatch.delenv(name, raising=False)
    assert levels([*services.check_etcd(), *services.check_nats()]) == ["ok", "ok"]
