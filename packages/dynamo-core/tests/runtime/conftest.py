"""What the tests of both planes share: a real NATS server."""

from __future__ import annotations

import pytest

from dynamo.errors import ConfigError
from dynamo.testing.servers import NatsServer


@pytest.fixture(scope="session")
def nats_server():
    """One server for all tests that do not stop it; they use namespaces of their own."""
    try:
        server = NatsServer()
    except ConfigError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def own_nats_server(nats_server):
    """A server that the test may kill."""
    with NatsServer() as server:
        yield server
