"""Outage: one line when it begins, one when it ends, however many parts fail."""

import logging

from dynamo.errors import DiscoveryError
from dynamo.runtime.etcd.outage import Outage


def test_says_each_thing_once(caplog):
    caplog.set_level(logging.INFO)
    outage = Outage("nothing is lost")
    for _ in range(3):
        outage.begin("watch", DiscoveryError("etcd at a: refused"))
        outage.begin("lease", DiscoveryError("etcd at a: no answer"))
    assert outage.affects("watch")
    outage.end("watch")
    outage.end("watch")
    assert caplog.messages == ["etcd at a: refused; nothing is lost"]
    assert not outage.affects("watch")
    outage.end("lease")
    assert caplog.messages[1:] == ["etcd works again"]
    outage.begin("watch", DiscoveryError("again"))
    assert len(caplog.messages) == 3
