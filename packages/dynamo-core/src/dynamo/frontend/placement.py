"""What decides when and where a request runs, besides its tokens: gathered once per request by the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dynamo.frontend.nvext import Nvext, pinned_worker
from dynamo.frontend.queue_place import QueuePlace, queue_place
from dynamo.frontend.routing_hints import RoutingHints, routing_hints
from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.routing import PrefixHashes

__all__ = ["Placement", "request_placement"]


class Placement(NamedTuple):
    """See `dynamo.protocols.routing.RouteRequest`, which most of it ends in."""

    place: QueuePlace
    hints: RoutingHints
    pinned: WorkerKey | None = None
    """The worker that the client chose."""
    prefix: Sequence[PrefixHashes] = ()
    """Hashes of the prompt's beginning that other prompts have had."""


def request_placement(
    headers: Mapping[str, str], priority: int, nvext: Nvext | None, *, overrides_for_all: bool
) -> Placement:
    """The placement of the current request; its prompts add their prefixes.

    Raises:
        InvalidRequest: a header or ``nvext`` says what cannot be, or what is not allowed here.
    """
    hints = nvext.agent_hints if nvext is not None else None
    tier = hints.strict_priority or 0 if hints is not None else 0
    return Placement(
        queue_place(headers, priority, tier),
        routing_hints(headers, overrides_for_all=overrides_for_all),
        pinned_worker(nvext),
    )
