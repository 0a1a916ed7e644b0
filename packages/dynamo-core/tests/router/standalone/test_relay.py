"""What a relay leaves behind when the plane or a plugin fails it: no booking, and an error for who asked."""

from __future__ import annotations

import pytest

from dynamo.errors import CannotConnect, EngineError
from dynamo.plugins import plugins
from dynamo.protocols.addressing import InstanceId
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import PreprocessedRequest, StopConditions, pack_token_ids
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import policy_for_mode
from dynamo.router.settings import RouterSettings
from dynamo.router.standalone.relay import Relay
from dynamo.runtime.context import Context


class BrokenPlane:
    """Cannot even begin to send."""

    def __init__(self, error):
        self.error = error

    def send(self, record, payload, sink, context):
        raise self.error


class Writer:
    """Remembers how the stream ended."""

    error = None

    def fail(self, error):
        self.error = error


@pytest.fixture
def table():
    settings = RouterSettings(router_mode="kv")
    table = CandidateTable(policy_for_mode("kv", plugins(), settings), settings, model="m")
    table.put(InstanceRecord("a", "b", "c", InstanceId(1), card=ModelDeploymentCard("m")))
    return table


@pytest.mark.parametrize("error", [CannotConnect("no such transport"), KeyError("a plugin's")])
def test_a_request_that_could_not_be_sent_is_no_load(table, error):
    request = PreprocessedRequest("r", "m", pack_token_ids([1] * 64), stop=StopConditions(max_tokens=1))
    with pytest.raises(type(error)):
        Relay(request, table, BrokenPlane(error), Context("r"), Writer()).start()
    (candidate,) = table.candidates()
    assert (candidate.active_requests, len(candidate.kv.active)) == (0, 0)


def test_who_is_let_go_by_the_queue_never_raises(table):
    request = PreprocessedRequest("r", "m", pack_token_ids([1] * 64), stop=StopConditions(max_tokens=1))
    writer = Writer()
    Relay(request, table, BrokenPlane(KeyError("a plugin's")), Context("r"), writer).admitted()
    assert isinstance(writer.error, EngineError)
    assert "KeyError" not in writer.error.message
    (candidate,) = table.candidates()
    assert candidate.active_requests == 0
