"""`/busy_threshold`: read, set, reset; for admins; shared by the processes of a machine."""

from __future__ import annotations

import pytest

from dynamo.errors import ConfigError
from dynamo.frontend.busy_pages import BusyPages
from dynamo.router.thresholds import BusyThresholds

PAGE = "/busy_threshold"
COMPLETION = {"model": "echo", "prompt": "a b c d e f g h", "max_tokens": 400}
SLOW = ["--tokens-per-second", "20", "--num-blocks", "64"]


def body(blocks=None, tokens=None):
    return {"model": "echo", "active_decode_blocks_threshold": blocks, "active_prefill_tokens_threshold": tokens}


async def test_thresholds_are_read_set_and_reset(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, router={"busy_thresholds": ["echo=0.9:"]})
    await deployment.serves("echo")
    client = deployment.client
    assert (await client.get(PAGE)).json() == {"thresholds": [body(0.9)]}
    changed = await client.post(PAGE, json={"model": "echo", "active_prefill_tokens_threshold": 5000})
    assert (changed.status_code, changed.json()) == (200, body(0.9, 5000))
    assert (await client.post(PAGE, json={"model": "echo"})).json() == body(0.9, 5000)
    off = await client.post(PAGE, json={"model": "echo", "active_decode_blocks_threshold": None})
    assert off.json() == body(None, 5000)
    assert (await client.get(PAGE)).json() == {"thresholds": [body(None, 5000)]}
    assert (await client.delete(f"{PAGE}/echo")).json() == body(0.9)
    assert (await client.get(PAGE)).json() == {"thresholds": [body(0.9)]}


async def test_a_threshold_takes_effect_at_once(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": SLOW})
    await deployment.serves("echo")
    async with deployment.client.stream("POST", "/v1/completions", json={**COMPLETION, "stream": True}) as stream:
        assert stream.status_code == 200
        (candidate,) = deployment.frontend.models.get("echo").candidates._ordered
        await deployment.until(lambda: candidate.load is not None and candidate.load.used_kv_blocks > 0)
        await deployment.client.post(PAGE, json={"model": "echo", "active_decode_blocks_threshold": 0.001})
        refused = await deployment.client.post("/v1/completions", json=COMPLETION)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        await deployment.client.delete(f"{PAGE}/echo")
        async with deployment.client.stream("POST", "/v1/completions", json={**COMPLETION, "stream": True}) as other:
            assert other.status_code == 200


@pytest.mark.parametrize(
    ("wrong", "status", "param"),
    [
        ({}, 400, "model"),
        ({"model": "nobody"}, 404, "model"),
        ({"model": "echo", "active_decode_blocks_threshold": 1.5}, 400, "active_decode_blocks_threshold"),
        ({"model": "echo", "active_decode_blocks_threshold": 0}, 400, "active_decode_blocks_threshold"),
        ({"model": "echo", "active_prefill_tokens_threshold": 0}, 400, "active_prefill_tokens_threshold"),
        ({"model": "echo", "active_prefill_tokens_threshold": "many"}, 400, "active_prefill_tokens_threshold"),
    ],
)
async def test_wrong_bodies_are_refused(echo, wrong, status, param):
    answer = await echo.client.post(PAGE, json=wrong)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert (await echo.client.get(PAGE)).json() == {"thresholds": [body()]}


async def test_with_keys_it_is_for_admins(make_deployment, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("[{name: ops, key: sk-admin-1, admin: true}, {name: team, key: sk-team-01}]")
    deployment = await make_deployment({"backend": "echo"}, api_key_file=str(keys))
    await deployment.serves("echo")
    change = {"model": "echo", "active_prefill_tokens_threshold": 9}
    for key, status in (("sk-admin-1", 200), ("sk-team-01", 403), ("wrong-key", 401)):
        headers = {"authorization": f"Bearer {key}"}
        for answer in (
            await deployment.client.get(PAGE, headers=headers),
            await deployment.client.post(PAGE, json=change, headers=headers),
            await deployment.client.delete(f"{PAGE}/echo", headers=headers),
        ):
            assert answer.status_code == status, answer.text


async def test_other_processes_and_later_ones_use_what_was_set(make_deployment):
    first = await make_deployment({"backend": "echo"}, security_reload_seconds=0.01)
    second = await make_deployment({"backend": "echo"}, security_reload_seconds=0.01)
    for deployment in (first, second):
        await deployment.serves("echo")
    await first.client.post(PAGE, json={"model": "echo", "active_prefill_tokens_threshold": 77})
    wanted = BusyThresholds(active_prefill_tokens_threshold=77)
    await second.until(lambda: second.frontend.models.get("echo").candidates.thresholds == wanted)
    later = await make_deployment({"backend": "echo"})
    await later.serves("echo")
    assert later.frontend.models.get("echo").candidates.thresholds == wanted


async def test_a_broken_file_stops_the_start_and_not_what_runs(echo, tmp_path, caplog):
    file = tmp_path / "frontend" / "busy-thresholds.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"busy-thresholds\.json"):
        BusyPages(file, echo.frontend.models)
    echo.frontend._busy.watch._try_reload()
    assert "the old one stays in force" in caplog.text
    assert (await echo.client.get(PAGE)).status_code == 200
