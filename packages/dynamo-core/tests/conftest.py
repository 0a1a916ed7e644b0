"""The etcd of tests in several portions; a test that needs one is skipped where it is not installed."""

from __future__ import annotations

import contextlib

import pytest

from dynamo.errors import ConfigError
from dynamo.testing.servers import EtcdServer


def new_etcd(**options) -> EtcdServer:
    pytest.importorskip("aetcd", reason='etcd needs aetcd: pip install "dynamo-core[etcd]"')
    try:
        return EtcdServer(**options)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def etcd_server():
    """One etcd for all tests that leave it running, and empty."""
    with new_etcd() as server:
        yield server


@pytest.fixture
def start_etcd():
    """``start_etcd(**options)`` gives a server that lives as long as the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(new_etcd(**options))


@pytest.fixture
def etcd(start_etcd):
    """An etcd for one test to ill-treat."""
    return start_etcd()
