import json

import pytest

from dynamo.errors import ConfigError, PluginNotFound
from dynamo.serve.deployment import from_flags
from dynamo.serve.graph_file import from_graph_file
from dynamo.serve.settings import ServeSettings
from dynamo.serve.snippets import Serving, reachable_host, ready_text

FRONTEND = {"componentType": "frontend", "extraPodSpec": {"mainContainer": {"image": "frontend:1"}}}
WORKER = {
    "componentType": "worker",
    "replicas": 2,
    "extraPodSpec": {
        "mainContainer": {"command": ["python3", "-m", "dynamo.worker"], "args": ["--backend", "reference"]}
    },
}


@pytest.fixture
def graph_file(tmp_path):
    def write(services, *, count=1):
        document = {"apiVersion": "nvidia.com/v1alpha1", "kind": "DynamoGraphDeployment"}
        path = tmp_path / "graph.yaml"
        path.write_text(
            "\n---\n".join(
                json.dumps({**document, "metadata": {"name": f"hello{number}"}, "spec": {"services": services}})
                for number in range(count)
            )
        )
        return str(path)

    return write


def command(module="dynamo.frontend", *args, shell=False, **fields):
    words = ["python3", "-m", module, *args]
    container = {"command": ["/bin/sh", "-c"], "args": [" ".join(words)]} if shell else {"command": words}
    return {"componentType": "frontend", "extraPodSpec": {"mainContainer": container}, **fields}


def by_name(deployment):
    return {spec.name: spec for spec in deployment.components}


def test_no_flags_is_the_demo():
    deployment = from_flags(ServeSettings(), (), {})
    assert [(spec.name, spec.kind, spec.replicas) for spec in deployment.components] == [
        ("frontend", "frontend", 1),
        ("worker", "worker", 1),
    ]
    assert (deployment.host, deployment.port) == ("127.0.0.1", 8000)
    worker = by_name(deployment)["worker"]
    assert worker.argv == ("python3", "-m", "dynamo.worker", "--backend", "reference")
    assert worker.env == {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def test_flags_reach_the_processes_and_the_rest_the_engine():
    settings = ServeSettings(
        backend="echo", model="m", served_model_name="s", replicas=3, gpus=2, router_mode="random", host="::1", port=81
    )
    components = by_name(from_flags(settings, ("--reply", "a b", "-x"), {}))
    assert components["frontend"].argv[3:] == (
        *("--http-host", "::1", "--http-port", "81"),
        *("--router-mode", "random"),
    )
    worker = components["worker"]
    assert worker.argv[3:] == (
        *("--backend", "echo", "--model", "m", "--served-model-name", "s"),
        *("--reply", "a b", "-x"),
    )
    assert (worker.replicas, worker.resources, worker.env) == (3, {"gpu": "2"}, {})


def test_several_frontends_share_the_port():
    frontend = by_name(from_flags(ServeSettings(frontends=3, port=81), (), {}))["frontend"]
    assert frontend.replicas == 3
    assert frontend.argv[-1] == "--http-reuse-port"
    assert "--http-reuse-port" not in by_name(from_flags(ServeSettings(), (), {}))["frontend"].argv


def test_threads_that_the_user_set_are_kept():
    worker = by_name(from_flags(ServeSettings(), (), {"OMP_NUM_THREADS": "4"}))["worker"]
    assert worker.env == {"OPENBLAS_NUM_THREADS": "1"}


def test_port_zero_takes_a_free_one():
    assert from_flags(ServeSettings(port=0), (), {}).port > 1024


def test_unknown_backend_lists_what_is_installed():
    with pytest.raises(PluginNotFound, match=r"there is no engine named 'vlm'\ninstalled: .*reference"):
        from_flags(ServeSettings(backend="vlm"), (), {})


def test_graph_services_run_their_pods_commands(graph_file):
    deployment = from_graph_file(ServeSettings(file=graph_file({"Frontend": FRONTEND, "Worker": WORKER})), {})
    components = by_name(deployment)
    assert components["Frontend"].argv == ("python3", "-m", "dynamo.frontend")
    assert components["Frontend"].env["DYN_HTTP_PORT"] == "8000"
    assert components["Frontend"].env["DYN_HTTP_HOST"] == "127.0.0.1"
    assert components["Worker"].argv == ("python3", "-m", "dynamo.worker", "--backend", "reference")
    assert components["Worker"].replicas == 2
    assert components["Worker"].env["OMP_NUM_THREADS"] == "1"
    assert deployment.port == 8000
    assert deployment.notes == ["Frontend: image frontend:1 is not used: the component runs in this Python environment"]


@pytest.mark.parametrize(
    ("frontend", "flags", "port", "extra"),
    [
        (command("dynamo.frontend", "--http-port", "8011"), {}, 8011, ()),
        (command("dynamo.frontend", "--http-port=8011"), {"port": 8012}, 8012, ("--http-port", "8012")),
        (command("dynamo.frontend", "--http-host", "0.0.0.0"), {}, 8000, ("--http-host", "127.0.0.1")),
        (command(envs=[{"name": "DYN_HTTP_PORT", "value": "8013"}]), {}, 8013, ()),
        (command("dynamo.frontend", "--http-port", "8014", shell=True), {}, 8014, ()),
        (command(shell=True), {"port": 8015}, 8015, ()),
    ],
)
def test_port_of_a_graph(graph_file, frontend, flags, port, extra):
    deployment = from_graph_file(ServeSettings(file=graph_file({"Frontend": frontend}), **flags), {})
    [spec] = deployment.components
    assert deployment.port == port
    assert spec.env["DYN_HTTP_PORT"] == str(port)
    original = frontend["extraPodSpec"]["mainContainer"]
    assert spec.argv == (*original["command"], *original.get("args", ()), *extra)


def test_port_inside_a_script_cannot_be_changed(graph_file):
    file = graph_file({"Frontend": command("dynamo.frontend", "--http-port", "8014", shell=True)})
    with pytest.raises(ConfigError, match="--http-port 8014 is inside a shell script") as caught:
        from_graph_file(ServeSettings(file=file, port=8015), {})
    assert "write the command as a list" in caught.value.hint


def test_port_that_is_none(graph_file):
    file = graph_file({"Frontend": command("dynamo.frontend", "--http-port", "http")})
    with pytest.raises(ConfigError, match="Frontend: 'http' is not a port"):
        from_graph_file(ServeSettings(file=file), {})


def test_frontends_run_once_each_on_their_own_port(graph_file):
    services = {"A": command(replicas=3), "B": command()}
    deployment = from_graph_file(ServeSettings(file=graph_file(services)), {})
    ports = {spec.name: spec.env["DYN_HTTP_PORT"] for spec in deployment.components}
    assert ports["A"] == "8000"
    assert ports["B"] != "8000"
    assert [spec.replicas for spec in deployment.components] == [1, 1]
    assert "A: runs once; 3 replicas need a load balancer in front" in deployment.notes


def test_graph_without_a_frontend_has_no_port(graph_file):
    assert from_graph_file(ServeSettings(file=graph_file({"Worker": WORKER})), {}).port is None


def test_working_directory_of_the_image_is_used_only_if_it_exists(graph_file, tmp_path):
    def worker(directory):
        container = {"command": ["python3", "-m", "dynamo.echo"], "workingDir": str(directory)}
        return {"componentType": "worker", "extraPodSpec": {"mainContainer": container}}

    services = {"A": worker("/workspace/none"), "B": worker(tmp_path)}
    components = by_name(from_graph_file(ServeSettings(file=graph_file(services)), {}))
    assert components["A"].working_directory is None
    assert components["B"].working_directory == str(tmp_path)


@pytest.mark.parametrize("flag", [{"model": "x"}, {"replicas": 1}, {"backend": "echo"}])
def test_flags_that_contradict_a_graph(graph_file, flag):
    with pytest.raises(ConfigError, match=f"--{next(iter(flag))} does not go with --file"):
        from_graph_file(ServeSettings(file=graph_file({"Worker": WORKER}), **flag), {})


def test_several_graphs_in_a_file(graph_file):
    with pytest.raises(ConfigError, match="holds 2 graphs: hello0, hello1"):
        from_graph_file(ServeSettings(file=graph_file({"Worker": WORKER}, count=2)), {})


def test_unknown_field_in_a_graph(graph_file):
    with pytest.raises(ConfigError, match="replcas"):
        from_graph_file(ServeSettings(file=graph_file({"Worker": {**WORKER, "replcas": 2}})), {})


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("fe80::1", "[fe80::1]"), ("box", "box")],
)
def test_host_that_a_client_can_reach(host, expected):
    assert reachable_host(host) == expected


def test_snippets_can_be_pasted_whatever_the_model_is_called():
    text = ready_text(Serving(['it\'s "big"']), "127.0.0.1", 1, "frontend, worker", 1.26)
    assert "Ready in 1.3 s: http://127.0.0.1:1" in text
    assert """-d '{"model": "it'\\''s \\"big\\"",""" in text
    assert """model="it's \\"big\\"",""" in text
    assert "Bearer" not in text


def test_snippets_say_what_clients_need():
    text = ready_text(Serving(["m"], tls=True, api_key=True, client_certificate=True), "0.0.0.0", 8443, "frontend", 1.0)
    assert "curl https://127.0.0.1:8443/v1/chat/completions" in text
    assert '-H "Authorization: Bearer $YOUR_KEY" \\\n' in text
    assert 'api_key=os.environ["YOUR_KEY"]' in text
    assert 'dynamo chat --url https://127.0.0.1:8443 --api-key "$YOUR_KEY"' in text
    for flag in ("--cacert", "SSL_CERT_FILE", "--cert FILE --key FILE"):
        assert flag in text
