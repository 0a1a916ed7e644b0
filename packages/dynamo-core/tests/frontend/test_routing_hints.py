"""What clients may tell the router, and who may."""

from __future__ import annotations

import pytest

from dynamo.errors import InvalidRequest
from dynamo.frontend.routing_hints import RoutingHints, routing_hints
from dynamo.frontend.security import ANONYMOUS, Identity, run_as
from dynamo.protocols.routing import RouterOverrides

ADMIN, TEAM = Identity("gateway", admin=True), Identity("team")


def hints(identity, headers, for_all=False):
    found = []
    run_as(identity, lambda given: found.append(routing_hints(given, overrides_for_all=for_all)), headers)
    return found[0]


def test_sessions_of_different_keys_are_different():
    headers = {"x-dynamo-session-id": "s1"}
    assert [hints(who, headers).session for who in (ANONYMOUS, TEAM, ADMIN)] == ["/s1", "team/s1", "gateway/s1"]
    assert hints(TEAM, {}) == hints(TEAM, {"x-dynamo-session-id": ""}) == RoutingHints()


@pytest.mark.parametrize(("identity", "for_all"), [(ADMIN, False), (TEAM, True), (ANONYMOUS, True)])
def test_parameters_are_read(identity, for_all):
    headers = {"x-dynamo-router": "overlap-score-credit=0.5, temperature=0"}
    assert hints(identity, headers, for_all).overrides == RouterOverrides(overlap_score_credit=0.5, temperature=0.0)


def test_parameters_of_others_are_refused_by_default():
    with pytest.raises(InvalidRequest, match="does not take router parameters") as caught:
        hints(TEAM, {"x-dynamo-router": "temperature=1"})
    assert "--router-request-overrides" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "temperature", "temperature=", "temperature=nan", "temperature=-1", "temperature=1000001", "speed=1", "a=1,,"],
)
def test_what_is_no_parameter_is_named(text):
    with pytest.raises(InvalidRequest, match="x-dynamo-router has") as caught:
        hints(ADMIN, {"x-dynamo-router": text})
    assert "overlap-score-credit" in caught.value.hint


def test_without_keys_everybody_is_trusted():
    headers = {"x-dynamo-router": "temperature=1"}
    assert hints(ANONYMOUS, headers).overrides == RouterOverrides(temperature=1.0)


def test_a_session_has_a_longest_name():
    with pytest.raises(InvalidRequest, match="257 characters"):
        hints(TEAM, {"x-dynamo-session-id": "x" * 257})
