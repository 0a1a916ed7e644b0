"""A scorer of a plugin that gives no numbers: the request ends with an error that names it."""

from __future__ import annotations

from dynamo.plugins import Registration, plugins


class Undecided:
    consumes = ()

    def score(self, request, candidates):
        return [float("nan")] * len(candidates)


async def test_a_scorer_that_gives_no_number_is_named_to_the_client(make_deployment):
    registry = plugins().scorers
    registry.add(Registration("undecided", Undecided, "test"))
    try:
        worker = {"backend": "echo"}
        router = {"router_mode": "kv", "router_scorers": ["undecided=1"]}
        deployment = await make_deployment(worker, worker, router=router)
        await deployment.serves("echo", workers=2)
        answer = await deployment.client.post("/v1/completions", json={"model": "echo", "prompt": "x"})
    finally:
        del registry._entries["undecided"]
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "plugin_error"
    assert "Undecided gave a score of nan" in error["message"]
