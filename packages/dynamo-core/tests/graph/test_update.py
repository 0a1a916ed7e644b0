import pytest

from dynamo.graph import read_graph, validate_update


def graph(framework="vllm", **services):
    document = {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": "g"},
        "spec": {"services": services},
    }
    if framework:
        document["spec"]["backendFramework"] = framework
    return read_graph(document)[0]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (graph(A={}), graph(A={"replicas": 5}), []),
        (graph(None, A={}), graph("vllm", A={}), []),
        (
            graph("vllm", A={}),
            graph("sglang", A={}),
            ["spec.backendFramework: cannot change, it was 'vllm' (got 'sglang'); make another graph"],
        ),
        (
            graph(A={}, B={}),
            graph(A={}, C={}),
            [
                "spec.services.B: cannot be removed while the graph exists; delete the graph and make it again",
                "spec.services.C: cannot be added while the graph exists; delete the graph and make it again",
            ],
        ),
        (
            graph(A={}),
            graph(A={"multinode": {}}),
            [
                "spec.services.A.multinode: a service cannot change between one node and several; delete the graph and make it again"
            ],
        ),
        (graph(A={"multinode": {}}), graph(A={"multinode": {"nodeCount": 4}}), []),
    ],
)
def test_update(old, new, expected):
    assert [str(violation) for violation in validate_update(old, new)] == expected
