import asyncio
import json
import stat

import pytest

from dynamo.errors import CannotConnect, ConfigError
from dynamo.protocols.scheduling import ComponentStatus
from dynamo.serve.control import SOCKET_NAME, ControlClient
from dynamo.serve.scheduler import LocalScheduler


async def ask(state_dir, line: bytes) -> dict:
    reader, writer = await asyncio.open_unix_connection(state_dir / SOCKET_NAME)
    writer.write(line + b"\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return json.loads(answer) if answer else {}


async def test_another_process_reads_scales_and_restarts(scheduler, component, tmp_path):
    await scheduler.apply([component()])
    await scheduler.wait_ready()
    client = ControlClient(tmp_path / "state")
    [status] = await client.status()
    assert isinstance(status, ComponentStatus)
    assert status == (await scheduler.status())[0]
    scaled = await client.scale("worker", 2, expected_generation=status.generation)
    assert (scaled.desired_replicas, scaled.generation) == (2, 2)
    await scheduler.wait_ready()
    before = {replica.pid for replica in (await client.status())[0].replicas}
    await client.restart("worker")
    after = {replica.pid for replica in (await client.status())[0].replicas}
    assert len(after) == 2
    assert before.isdisjoint(after)


async def test_errors_arrive_with_their_class_and_hint(scheduler, component, tmp_path):
    await scheduler.apply([component()])
    with pytest.raises(ConfigError, match="generation 1, not 9") as caught:
        await ControlClient(tmp_path / "state").scale("worker", 2, expected_generation=9)
    assert "read its status" in caught.value.hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not a control request"),
        (b"[]", "not a control request"),
        (b'{"method": "scale", "params": {"component": "worker"}}', "missing required field `replicas`"),
        (b'{"method": "scale", "params": {"component": "worker", "replicas": 1, "by": 2}}', "unknown field `by`"),
        (b'{"method": "explode"}', "no control method 'explode'"),
    ],
)
async def test_wrong_requests_are_answered(scheduler, component, tmp_path, line, message):
    await scheduler.apply([component()])
    answer = await ask(tmp_path / "state", line)
    assert answer["error"]["code"] == "invalid_request"
    assert message in answer["error"]["message"]


async def test_endless_request_is_cut_off_and_others_are_served(scheduler, component, tmp_path):
    await scheduler.apply([component()])
    try:
        answer = await ask(tmp_path / "state", b"x" * (1 << 20))
    except ConnectionError:
        answer = {}
    assert answer == {}
    assert len(await ControlClient(tmp_path / "state").status()) == 1


async def test_socket_is_the_users_own_and_goes_away(scheduler, component, tmp_path):
    await scheduler.apply([component()])
    socket = tmp_path / "state" / SOCKET_NAME
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    await scheduler.close()
    assert not socket.exists()
    with pytest.raises(CannotConnect, match=r"is `dynamo serve` running\?"):
        await ControlClient(tmp_path / "state").status()


async def test_state_directory_with_a_path_too_long_for_sockets(component, tmp_path):
    scheduler = LocalScheduler(tmp_path / ("x" * 100))
    with pytest.raises(ConfigError, match="too long a path for a Unix socket"):
        await scheduler.apply([component()])
    await scheduler.close()
