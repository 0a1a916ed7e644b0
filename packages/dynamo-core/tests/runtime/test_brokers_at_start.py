"""What a process that serves nothing, as a frontend, learns of its broker when it starts."""

from __future__ import annotations

import pytest

from dynamo.errors import ConfigError
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.settings import RuntimeSettings
from dynamo.testing.servers import NatsServer


def _runtime(tmp_path, **settings):
    made = RuntimeSettings(
        discovery_backend=f"memory://{tmp_path}",
        state_dir=str(tmp_path),
        event_plane="",
        request_plane="nats",
        **settings,
    )
    return DistributedRuntime(made)


@pytest.mark.parametrize("fallback", ["", "tcp"])
async def test_a_process_that_only_asks_is_refused_at_its_start(nats_server, tmp_path, fallback):
    with NatsServer(arguments=["--user=joe", "--pass=s3cret"]) as server:
        login = {"nats_servers": [server.url], "nats_user": "joe", "request_plane_fallback": fallback}
        with pytest.raises(ConfigError, match="NATS refused this process") as caught:
            await _runtime(tmp_path, **login, nats_password="x").__aenter__()
        assert "NATS_PASSWORD" in str(caught.value.hint)
        async with _runtime(tmp_path, **login, nats_password="s3cret"):
            pass


async def test_a_process_that_only_asks_starts_while_nats_is_away(tmp_path, caplog):
    async with _runtime(tmp_path, nats_servers=["nats://127.0.0.1:1"]):
        assert "NATS cannot be reached, trying again" in caplog.text
