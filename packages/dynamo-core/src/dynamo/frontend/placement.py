"""What decides when and where a request runs, besides its tokens: gathered once per request by the pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dynamo.frontend.metrics import RequestMetrics
from dynamo.frontend.nvext import Nvext, pinned_worker
from dynamo.frontend.queue_place import QueuePlace, queue_place
from dynamo.frontend.routing_hints import RoutingHints, routing_hints
from dynamo.frontend.security.identity import current_identity
from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.routing import PrefixHashes
from dynamo.router.explain import Decision, decision_listener

__all__ = ["Placement", "explaining", "request_placement"]


class Placement(NamedTuple):
    """See `dynamo.protocols.routing.RouteRequest`, which most of it ends in."""

    place: QueuePlace
    hints: RoutingHints
    pinned: WorkerKey | None = None
    """The worker that the client chose."""
    prefix: Sequence[PrefixHashes] = ()
    """Hashes of the prompt's beginning that other prompts have had."""


def request_placement(
    headers: Mapping[str, str], priority: int, nvext: Nvext | None, *, overrides_for_all: bool, pins_for_all: bool
) -> Placement:
    """The placement of the current request; its prompts add their prefixes.

    Raises:
        InvalidRequest: a header or ``nvext`` says what cannot be, or what is not allowed here.
    """
    hints = nvext.agent_hints if nvext is not None else None
    tier = hints.strict_priority or 0 if hints is not None else 0
    return Placement(
        queue_place(headers, priority, tier),
        routing_hints(headers, nvext.router if nvext is not None else None, overrides_for_all=overrides_for_all),
        pinned_worker(nvext, pins_for_all=pins_for_all),
    )


@contextlib.contextmanager
def explaining(nvext: Nvext, metrics: RequestMetrics, *, explains_to_all: bool) -> Iterator[None]:
    """While the current request is sent: note the router's decision, for a client that asked in the body and may."""
    if not nvext.explain or not (explains_to_all or current_identity().admin):
        yield
        return
    # Who asked by header too is told by header too.
    header = decision_listener.get()

    def tell(decision: Decision) -> None:
        metrics.routing = decision.to_json()
        if header is not None:
            header(decision)

    token = decision_listener.set(tell)
    try:
        yield
    finally:
        decision_listener.reset(token)
