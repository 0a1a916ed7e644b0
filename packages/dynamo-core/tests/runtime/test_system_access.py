"""Who may change a process through its system port; the whole table is in the worker's tests of ``/v1/loras``."""

from __future__ import annotations

import pytest

from dynamo.errors import Unauthorized
from dynamo.runtime.http import LocalExchange
from dynamo.runtime.settings import RuntimeSettings
from dynamo.runtime.system_access import system_access

EVERYWHERE = "0.0.0.0"


async def test_the_secret_may_come_from_a_file(tmp_path):
    (tmp_path / "secret").write_text("s3cret\n")
    access = system_access(RuntimeSettings(system_host=EVERYWHERE, plane_secret_file=str(tmp_path / "secret")))
    access.check(LocalExchange("POST", "/x", b"", {"authorization": "Bearer s3cret"}))
    with pytest.raises(Unauthorized, match="the secret of the deployment"):
        access.check(LocalExchange("POST", "/x", b""))


async def test_without_a_secret_only_this_machine_gets_in():
    with pytest.raises(Unauthorized):
        system_access(RuntimeSettings(system_host=EVERYWHERE)).check(LocalExchange("GET", "/x", b""))
    system_access(RuntimeSettings()).check(LocalExchange("GET", "/x", b""))
    with pytest.raises(Unauthorized, match="web pages"):
        system_access(RuntimeSettings()).check(LocalExchange("GET", "/x", b"", {"origin": "null"}))


@pytest.mark.parametrize("host", ["localhost:9090", "127.0.0.1:9090", "[::1]:9090", "127.0.0.1"])
async def test_this_machine_is_called_by_its_own_names(host):
    system_access(RuntimeSettings()).check(LocalExchange("GET", "/x", b"", {"host": host}))


@pytest.mark.parametrize("host", ["evil.example:9090", "localhost.evil.example", "10.0.0.1:9090", "", "]["])
async def test_a_name_that_was_rebound_to_this_machine_does_not_get_in(host):
    """The browser of somebody on this machine has been sent here by a page; its GET says no origin."""
    settings = RuntimeSettings(plane_secret="s3cret")
    with pytest.raises(Unauthorized, match="the secret of the deployment"):
        system_access(settings).check(LocalExchange("GET", "/x", b"", {"host": host}))
    known = {"host": host, "authorization": "Bearer s3cret"}
    system_access(settings).check(LocalExchange("GET", "/x", b"", known))
