"""The standalone router: serves token ids on the request plane, before the workers of one endpoint.

``python3 -m dynamo.router --endpoint ns.backend.generate`` announces, in the namespace of the workers,

* ``router.generate``: takes a `PreprocessedRequest`, chooses a worker, passes its outputs through;
* ``router.select`` (also ``router.best_worker_id``): takes the same, says which worker it would be, as a `Selection`.

The decisions are those of a frontend with the same settings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import Literal

import msgspec

from dynamo.errors import ConfigError, InvalidRequest, ModelNotFound
from dynamo.plugins import plugins
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.context import RequestContext
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import PreprocessedRequest
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.protocols.planes import StreamWriter
from dynamo.router.candidates import CandidateTable
from dynamo.router.metrics import RouterMetrics
from dynamo.router.policy import policy_for_mode
from dynamo.router.settings import RouterSettings
from dynamo.router.shadow import shadow_policies
from dynamo.router.standalone.relay import Relay, route_request
from dynamo.router.standalone.settings import RouterServiceSettings
from dynamo.router.worker_feeds import WorkerFeeds
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.server import iterator_handler

__all__ = ["GENERATE_ENDPOINT", "SELECT_ENDPOINTS", "RouterService", "Selection", "worker_endpoint"]

logger = logging.getLogger(__name__)

GENERATE_ENDPOINT = "generate"
SELECT_ENDPOINTS = ("select", "best_worker_id")

_decode = msgspec.msgpack.Decoder(PreprocessedRequest).decode


class Selection(msgspec.Struct, frozen=True):
    """A worker that would be chosen; nothing is booked."""

    instance_id: int
    dp_rank: int
    overlap_blocks: int
    """Blocks of the prompt that it holds; 0 where the router mode does not look."""
    block_size_tokens: int


class RouterService:
    """One process.

    Raises:
        ConfigError: the endpoint or the router mode is wrong.
    """

    def __init__(self, settings: RouterServiceSettings, router: RouterSettings, runtime: DistributedRuntime) -> None:
        self._settings = settings
        self._router = router
        self._runtime = runtime
        self._workers = worker_endpoint(settings)
        self._metrics = RouterMetrics(runtime.metrics)
        self._tables: dict[str, CandidateTable] = {}
        # Made once here so that a wrong mode stops the start.
        policies = [policy_for_mode(router.router_mode, plugins(), router)]
        policies += [shadow.policy for shadow in shadow_policies(router, plugins())]
        # The queue looks at what workers have to compute, whatever the mode.
        measures = router.router_queue_threshold is not None or any(policy.needs_facts for policy in policies)
        self._follows_caches = router.router_use_kv_events and measures

    async def run(self) -> None:
        """Serve until the runtime stops, then let open streams end.

        Raises:
            CannotConnect: no port can be bound.
            DiscoveryError: the announcement failed.
        """
        runtime, settings = self._runtime, self._settings
        runtime.health.require("workers", self._state)
        runtime.instances.listen(self._on_instance)
        await WorkerFeeds(self._find).subscribe(runtime, caches=self._follows_caches)
        await runtime.serve_endpoint(self._own(GENERATE_ENDPOINT), self.generate)
        for name in SELECT_ENDPOINTS:
            await runtime.serve_endpoint(self._own(name), iterator_handler(self.select, PreprocessedRequest))
        logger.info("%s routes to %s", self._own(GENERATE_ENDPOINT), self._workers)
        try:
            await runtime.stopping.wait()
            for table in self._tables.values():
                table.drain()
            if not await runtime.drain(settings.drain_grace_seconds):
                logger.warning("streams were still open %.0f s after the stop signal", settings.drain_grace_seconds)
        finally:
            for table in self._tables.values():
                await table.close()

    def generate(self, payload: bytes, context: RequestContext, writer: StreamWriter) -> None:
        """Handler of ``generate``.

        Raises:
            InvalidRequest: the payload is no `PreprocessedRequest`.
            ModelNotFound: no worker serves the model.
            NoInstances: nobody can take the request.
        """
        try:
            request = _decode(payload)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"the request is not what this endpoint takes: {error}") from error
        Relay(_checked(request), self._table(request.model), self._runtime.request_plane, context, writer).start()

    async def select(
        self,
        request: PreprocessedRequest,
        context: RequestContext,  # noqa: ARG002 - as every endpoint takes one
    ) -> AsyncIterator[Selection]:
        """Handler of ``select``: one item.

        Raises:
            ModelNotFound: no worker serves the model.
            NoInstances: nobody can take the request.
        """
        found = self._table(request.model).select(route_request(_checked(request)), time.monotonic())
        facts = found.facts
        yield Selection(found.key.instance_id, found.key.dp_rank, facts.overlap_blocks, facts.block_size)

    def _own(self, endpoint: str) -> EndpointAddress:
        return EndpointAddress.of(self._workers.namespace, self._settings.component, endpoint)

    def _find(self, model: str) -> CandidateTable | None:
        """Workers without a card serve whatever is asked for."""
        return self._tables.get(model, self._tables.get(""))

    def _table(self, model: str) -> CandidateTable:
        table = self._find(model)
        if table is None and not model and len(self._tables) == 1:
            table = next(iter(self._tables.values()))
        if table is None:
            served = ", ".join(sorted(self._tables)) or "none yet"
            raise ModelNotFound(f"no worker of {self._workers} serves {model!r}; served: {served}", param="model")
        return table

    def _on_instance(self, kind: Literal["put", "delete"], record: InstanceRecord) -> None:
        if record.address != self._workers:
            return
        if kind == "delete":
            for table in self._tables.values():
                table.remove(record.instance_id)
            return
        if record.card is None and self._settings.block_size_tokens is not None:
            card = ModelDeploymentCard("", block_size_tokens=self._settings.block_size_tokens)
            record = msgspec.structs.replace(record, card=card)
        model = record.card.model if record.card is not None else ""
        self._warn_of_block_size(record)
        if model not in self._tables:
            self._tables[model] = self._make_table(model)
        self._tables[model].put(record)

    def _make_table(self, model: str) -> CandidateTable:
        return CandidateTable(
            policy_for_mode(self._router.router_mode, plugins(), self._router),
            self._router,
            plane=self._runtime.request_plane,
            metrics=self._metrics.of(model),
            shadows=shadow_policies(self._router, plugins()),
            model=model,
        )

    def _warn_of_block_size(self, record: InstanceRecord) -> None:
        wanted, card = self._settings.block_size_tokens, record.card
        if wanted is not None and card is not None and card.block_size_tokens != wanted:
            logger.warning(
                "worker %014x has blocks of %d tokens, not the %d of --router-block-size; its own count",
                record.instance_id,
                card.block_size_tokens,
                wanted,
            )

    def _state(self) -> str | None:
        if not self._runtime.instances.synced.is_set():
            return "discovery has not been read yet"
        if not all(table.caught_up() for table in self._tables.values()):
            return "reading what the workers have cached"
        return None


def worker_endpoint(settings: RouterServiceSettings) -> EndpointAddress:
    """The workers' endpoint.

    Raises:
        ConfigError: there is none, or it is not of three parts.
    """
    if not settings.endpoint:
        raise ConfigError(
            "the standalone router needs the endpoint of its workers",
            param="endpoint",
            hint="--endpoint NAMESPACE.COMPONENT.ENDPOINT, as in --endpoint dynamo.backend.generate",
        )
    return EndpointAddress.parse(settings.endpoint)


def _checked(request: PreprocessedRequest) -> PreprocessedRequest:
    if not request.token_ids or len(request.token_ids) % 4:
        raise InvalidRequest("token_ids must be packed uint32, at least one", param="token_ids")
    return request
