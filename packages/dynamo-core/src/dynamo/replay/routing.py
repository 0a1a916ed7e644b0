"""The production router as `simulation` drives it: discovery records, KV events and loads as workers would send them.

Nothing is decided here; `dynamo.router.candidates` gets what a frontend would give it, with `now` from the simulation.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from dynamo.mocker.core import BlocksRemoved, CoreEvent, CoreLimits
from dynamo.plugins import plugins
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.engine import EngineCapabilities
from dynamo.protocols.kv_events import HashesRemoved, HashesStored, KvEventBatch
from dynamo.protocols.load import EngineLoad, WorkerLoad
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.protocols.routing import PromptHashes, RouteRequest
from dynamo.replay.traces import TraceRequest
from dynamo.replay.virtual_time import VirtualTime
from dynamo.router.candidates import CandidateTable
from dynamo.router.filters import Pinned
from dynamo.router.pickers import MaxScore
from dynamo.router.policy import RouterPolicy, policy_for_mode
from dynamo.router.queue import QueueUser
from dynamo.router.route import Route
from dynamo.router.settings import RouterSettings
from dynamo.router.shadow import ShadowPolicies, shadow_policies

__all__ = ["ReplayRouter"]

_MODEL = "trace"
_EPOCH = 1
_PINNING = RouterPolicy([Pinned()], [], MaxScore())


class _TracePrompt(PromptHashes):
    """A prompt of which only the hashes are known."""

    __slots__ = ("_hashes",)

    def __init__(self, hashes: list[int]) -> None:
        super().__init__(b"")
        self._hashes = hashes

    def of(self, block_size: int) -> Sequence[int]:  # noqa: ARG002 - all workers have the trace's block size
        """See `PromptHashes`."""
        return self._hashes


class ReplayRouter:
    """A candidate table with workers 0 to `workers` - 1. `now` is the simulation's time in seconds.

    Raises:
        ConfigError: there is no such router mode.
    """

    def __init__(self, settings: RouterSettings, limits: CoreLimits, workers: int) -> None:
        self._block_size = limits.block_size
        if settings.router_seed is None:
            settings = settings.model_copy(update={"router_seed": 0})
        self._policy = policy_for_mode(settings.router_mode, plugins(), settings)
        self._settings = settings
        self.time = VirtualTime()
        """The clock of the router's queue."""
        shadows = shadow_policies(settings, plugins())
        self._table = CandidateTable(self._policy, settings, shadows=shadows, queue_time=self.time)
        if self._table.shadows is not None:
            self._table.shadows.unbind()
        self._sequences = [-1] * workers
        self._requests = 0
        card = ModelDeploymentCard(
            _MODEL,
            block_size_tokens=limits.block_size,
            total_kv_blocks=limits.total_blocks,
            max_batched_tokens=limits.max_num_batched_tokens,
            backend="mocker",
            capabilities=EngineCapabilities(kv_events=True, load=True),
        )
        for worker in range(workers):
            self._table.put(InstanceRecord("replay", "backend", "generate", worker, card=card))

    @property
    def has_queue(self) -> bool:
        """Whether requests may wait."""
        return self._table.queue is not None

    @property
    def shadows(self) -> ShadowPolicies | None:
        """The shadow policies that the settings name."""
        return self._table.shadows

    def facts(self, request: TraceRequest) -> RouteRequest:
        """What the router is told of a request that arrives."""
        self._requests += 1
        return RouteRequest(
            f"replay-{self._requests}",
            _MODEL,
            prompt_tokens=request.input_tokens,
            priority=request.priority,
            prompt=_TracePrompt(request.hashes),
            tenant=request.tenant,
        )

    def waits(self, facts: RouteRequest, user: QueueUser) -> bool:
        """Whether a request waits in the queue, or has waited already; `user` is told. False: it may go at once.

        Raises:
            Overloaded: all workers are beyond a threshold of the settings, or the queue is full.
            RateLimited: the queue is full, and this tenant has most of it.
        """
        queue = self._table.queue
        return queue is not None and queue.enter(facts, user) is not None

    def select(self, facts: RouteRequest, now: float) -> Route:
        """Choose a worker and count the request as its work.

        Raises:
            Overloaded: all workers are beyond a threshold of the settings.
        """
        return self._table.route(facts, now)

    def send_to(self, worker: int, facts: RouteRequest, now: float) -> Route:
        """Take `worker` as if the policy had chosen it.

        Raises:
            NoInstances: it is beyond a threshold of the settings.
            Overloaded: all workers are.
        """
        # The policy decides here too, so that its turns and random numbers go on as if it had been followed.
        self._table.select(facts, now)
        self._table.configure(_PINNING, self._settings)
        try:
            route = self._table.route(msgspec.structs.replace(facts, pinned=WorkerKey(InstanceId(worker))), now)
        finally:
            self._table.configure(self._policy, self._settings)
        self._policy.routed(facts, route.worker, now)
        return route

    def take_events(self, worker: int, events: Sequence[CoreEvent]) -> None:
        """What one step of `worker` changed in its cache."""
        self._sequences[worker] += 1
        translated = [_translate(event) for event in events]
        self._table.take_events(
            KvEventBatch(worker, 0, _EPOCH, self._sequences[worker], self._block_size, [*translated], _MODEL)
        )

    def take_load(self, worker: int, load: EngineLoad, now: float) -> None:
        """What `worker` publishes of its load."""
        self._table.take_load(WorkerLoad(InstanceId(worker), _MODEL, [load]), now)


def _translate(event: CoreEvent) -> HashesStored | HashesRemoved:
    """Trace workers name their blocks by sequence hashes already."""
    if isinstance(event, BlocksRemoved):
        return HashesRemoved(np.array(event.names, "<u8").tobytes())
    names = event.sequence.names
    parent = names[event.start - 1] if event.start else None
    return HashesStored(np.array(names[event.start : event.stop], "<u8").tobytes(), parent)
