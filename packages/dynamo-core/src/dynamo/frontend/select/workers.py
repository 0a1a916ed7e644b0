"""The workers that the select service was told of, one candidate table per model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
import zmq.asyncio

from dynamo.errors import ConfigError, InvalidRequest, ModelNotFound, Overloaded
from dynamo.frontend.security import current_identity
from dynamo.frontend.select.listener import EngineListener, ListenedRank
from dynamo.frontend.text_rules import TcpEndpoint, WorkerName, in_words
from dynamo.protocols.addressing import InstanceId, WorkerKey, new_instance_id
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.engine import EngineCapabilities
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.router.candidates import CandidateTable
from dynamo.runtime.kv_event_stream import KvEventSource

__all__ = ["RegisteredWorker", "UnknownWorker", "WorkerPool", "WorkerRegistration", "read_workers_file"]


class UnknownWorker(InvalidRequest):
    """No worker of this name is registered."""

    code = "worker_not_found"
    http_status = 404


class KvEventsRegistration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an engine publishes KV events, as its own flags say (vLLM and SGLang: ``--kv-events-config``)."""

    endpoint: TcpEndpoint
    """``tcp://HOST:PORT`` of data-parallel rank 0; each further rank is at the next port."""
    replay_endpoint: TcpEndpoint | None = None
    """Where it answers for what was lost; without it, a loss clears what is known of the worker."""
    topic: str = ""


class WorkerRegistration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /workers``, and one entry of the workers file."""

    worker_id: WorkerName
    model: WorkerName
    url: str = ""
    """Given back with every selection; nothing else is done with it."""
    block_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Tokens per KV block, as the engine says."""
    dp_size: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    total_kv_blocks: Annotated[int, msgspec.Meta(ge=0)] = 0
    """What its cache holds; bounds what it is believed to hold where it has no KV events."""
    max_batched_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    kv_events: KvEventsRegistration | None = None
    """None: what was selected for it is believed to be in its cache for a while."""


class RegisteredWorker:
    """One worker and its listeners."""

    def __init__(self, registration: WorkerRegistration, instance_id: InstanceId) -> None:
        self.registration = registration
        self.instance_id = instance_id
        self.listeners: list[EngineListener] = []

    def to_json(self) -> dict[str, Any]:
        """For clients."""
        shown: dict[str, Any] = msgspec.to_builtins(self.registration)
        shown["kv_event_ranks"] = [listener.to_json() for listener in self.listeners]
        return shown


class WorkerPool:
    """All workers. `make_table` makes the candidates of a model; listeners use `context`."""

    def __init__(
        self, make_table: Callable[[str], CandidateTable], context: zmq.asyncio.Context, *, max_workers: int
    ) -> None:
        self._make_table = make_table
        self._context = context
        self._max_workers = max_workers
        self._by_name: dict[str, RegisteredWorker] = {}
        self._by_instance: dict[int, RegisteredWorker] = {}
        self._tables: dict[str, CandidateTable] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def all(self) -> list[RegisteredWorker]:
        """By name."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    def tables(self) -> dict[str, CandidateTable]:
        """The candidates of every model."""
        return dict(self._tables)

    def get(self, name: str) -> RegisteredWorker:
        """Raises UnknownWorker when there is none."""
        found = self._by_name.get(name)
        if found is None:
            raise UnknownWorker(f"no worker {name!r} is registered", param="worker_id")
        return found

    def of(self, key: WorkerKey) -> RegisteredWorker:
        """The worker behind a routing key."""
        return self._by_instance[key.instance_id]

    def table(self, model: str | None) -> tuple[str, CandidateTable]:
        """The model's name and candidates; None: the only model there is.

        Raises:
            ModelNotFound: no worker serves it, or the API key may not use it.
            InvalidRequest: `model` is None, and there is not exactly one.
        """
        may_use = current_identity().may_use
        usable = [name for name in sorted(self._tables) if len(self._tables[name]) and may_use(name)]
        served = ", ".join(usable) or "none yet"
        if model is None:
            if len(usable) != 1:
                raise InvalidRequest(
                    f"'model' is missing, and {len(usable)} models have workers: {served}", param="model"
                )
            model = usable[0]
        if model not in usable:
            raise ModelNotFound(f"the model {model!r} has no workers; served: {served}", param="model")
        return model, self._tables[model]

    async def put(self, registration: WorkerRegistration) -> RegisteredWorker:
        """Add a worker, or replace the one of its name.

        Raises:
            InvalidRequest: its KV event endpoint cannot be used.
            Overloaded: there are as many workers as there may be.
        """
        name = registration.worker_id
        full = name not in self._by_name and len(self._by_name) >= self._max_workers
        if full or (registration.model not in self._tables and len(self._tables) >= self._max_workers):
            # Models count too: the index and the metrics of one stay when its last worker goes.
            raise Overloaded(f"{self._max_workers} workers are registered, the most there may be")
        worker = RegisteredWorker(registration, new_instance_id())
        # Before the old one goes: an endpoint that is wrong changes nothing.
        worker.listeners = await self._listeners(worker)
        while name in self._by_name:  # while one goes, somebody else may register the next
            await self.remove(name)
        self._by_name[name] = self._by_instance[worker.instance_id] = worker
        table = self._tables.get(registration.model)
        if table is None:
            table = self._tables[registration.model] = self._make_table(registration.model)
        table.put(_record(worker))
        for listener in worker.listeners:
            listener.start(table.take_events)
        return worker

    async def remove(self, name: str) -> None:
        """Forget a worker.

        Raises:
            UnknownWorker: there is none of this name.
        """
        worker = self.get(name)
        del self._by_name[name]
        del self._by_instance[worker.instance_id]
        self._tables[worker.registration.model].remove(worker.instance_id)
        for listener in worker.listeners:
            await listener.close()

    async def close(self) -> None:
        """Stop listening."""
        for worker in self.all():
            for listener in worker.listeners:
                await listener.close()
        for table in self._tables.values():
            await table.close()

    async def _listeners(self, worker: RegisteredWorker) -> list[EngineListener]:
        registration = worker.registration
        events = registration.kv_events
        if events is None:
            return []
        sources = [_source(events, rank) for rank in range(registration.dp_size)]
        found: list[EngineListener] = []
        try:
            for rank, source in enumerate(sources):
                key = WorkerKey(worker.instance_id, rank)
                listened = ListenedRank(key, registration.model, registration.block_size, source)
                found.append(EngineListener(self._context, listened))
        except zmq.ZMQError as error:
            for listener in found:
                await listener.close()
            raise InvalidRequest(
                f"the KV events at {events.endpoint} cannot be listened to: {error}", param="kv_events.endpoint"
            ) from error
        return found


def read_workers_file(path: Path) -> list[WorkerRegistration]:
    """The workers of a YAML or JSON file.

    Raises:
        ConfigError: it cannot be read, or an entry is wrong.
    """
    try:
        with path.open(encoding="utf-8") as file:  # errors then name it
            data = yaml.safe_load(file)
        return msgspec.convert(data or [], list[WorkerRegistration])
    except OSError as error:
        raise ConfigError(f"cannot read the workers in {path}: {error.strerror}", param="workers_file") from error
    except (yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"{path}: {in_words(error) if isinstance(error, msgspec.ValidationError) else error}",
            param="workers_file",
            hint="a list of {worker_id, model, url, block_size, kv_events, ...}",
        ) from error


def _source(events: KvEventsRegistration, rank: int) -> KvEventSource:
    replay_endpoint = None if events.replay_endpoint is None else _at_rank(events.replay_endpoint, rank)
    return KvEventSource(_at_rank(events.endpoint, rank), replay_endpoint, events.topic)


def _at_rank(endpoint: str, rank: int) -> str:
    host, _, port = endpoint.rpartition(":")
    number = int(port) + rank
    if not 0 < number < 65536:
        raise InvalidRequest(f"{endpoint}: rank {rank} would be at port {number}", param="kv_events.endpoint")
    return f"{host}:{number}"


def _record(worker: RegisteredWorker) -> InstanceRecord:
    registration = worker.registration
    card = ModelDeploymentCard(
        registration.model,
        block_size_tokens=registration.block_size,
        max_batched_tokens=registration.max_batched_tokens,
        total_kv_blocks=registration.total_kv_blocks,
        dp_size=registration.dp_size,
        capabilities=EngineCapabilities(kv_events=registration.kv_events is not None),
    )
    return InstanceRecord("select", "worker", "generate", worker.instance_id, card=card)
