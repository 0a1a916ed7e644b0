"""Who is believed what about its place in the queue."""

from __future__ import annotations

import pytest

from dynamo.errors import InvalidRequest
from dynamo.frontend.queue_place import QueuePlace, queue_place
from dynamo.frontend.security import ANONYMOUS, Identity, run_as

GATEWAY, TEAM = Identity("gateway", admin=True), Identity("team")


def place(identity, headers=None, priority=0, tier=0):
    found = []
    run_as(identity, lambda given: found.append(queue_place(given, priority, tier)), headers or {})
    return found[0]


@pytest.mark.parametrize(
    ("identity", "headers", "priority", "expected"),
    [
        (ANONYMOUS, {}, 0, QueuePlace()),
        (ANONYMOUS, {"x-dynamo-tenant": "somebody"}, -3, QueuePlace("", -3)),
        (TEAM, {}, 7, QueuePlace("team", 7)),
        (TEAM, {"x-dynamo-tenant": "other"}, -9, QueuePlace("team", 0)),
        (GATEWAY, {}, -9, QueuePlace("gateway", -9)),
        (GATEWAY, {"x-dynamo-tenant": "other"}, -9, QueuePlace("other", -9)),
        (TEAM, {"x-dynamo-ttft-target-ms": "250"}, 0, QueuePlace("team", 0, 0.25)),
    ],
)
def test_the_key_is_the_tenant_and_an_admin_may_speak_for_others(identity, headers, priority, expected):
    assert place(identity, headers, priority) == expected


def test_a_tier_goes_before_any_priority_of_lower_tiers():
    soon, late = place(GATEWAY, priority=-(2**31), tier=1), place(GATEWAY, priority=2**31 - 1, tier=2)
    assert late.router_priority < soon.router_priority < place(ANONYMOUS, priority=-(2**31)).router_priority
    assert (late.priority, late.tier) == (2**31 - 1, 2), "engines get the priority alone"


def test_only_an_admins_tier_counts_where_there_are_keys():
    assert place(TEAM, tier=5) == QueuePlace("team", 0)
    assert place(GATEWAY, tier=5) == QueuePlace("gateway", 0, None, 5)


@pytest.mark.parametrize("target", ["", "soon", "0", "-1", "nan", "inf", "1e99", "3600001"])
def test_a_target_is_a_number_of_milliseconds(target):
    with pytest.raises(InvalidRequest) as caught:
        place(TEAM, {"x-dynamo-ttft-target-ms": target})
    assert caught.value.param == "x-dynamo-ttft-target-ms"


@pytest.mark.parametrize("tenant", ["a b", "x" * 129, "é", "a\n"])
def test_a_tenant_is_a_name(tenant):
    with pytest.raises(InvalidRequest, match="x-dynamo-tenant"):
        place(GATEWAY, {"x-dynamo-tenant": tenant})
