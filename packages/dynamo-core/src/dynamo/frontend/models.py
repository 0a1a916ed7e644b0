"""The models that this frontend serves: appear with their first worker, vanish for clients with their last."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal

import msgspec

from dynamo.errors import DynamoError, ModelNotFound, NoInstances
from dynamo.frontend.artifact_fetch import ArtifactFetcher
from dynamo.frontend.security.identity import current_identity
from dynamo.plugins import NamedRegistry, plugins
from dynamo.preprocessor import TextModel
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.kv_events import KvEventBatch
from dynamo.protocols.llm import DisaggregationMode
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.router.candidates import CandidateTable

__all__ = ["ServedModel", "ServedModels"]

logger = logging.getLogger(__name__)
_decode_load = msgspec.msgpack.Decoder(WorkerLoad).decode
_decode_events = msgspec.msgpack.Decoder(KvEventBatch).decode


class ServedModel:
    """One model: its text side and the workers that serve it."""

    def __init__(self, card: ModelDeploymentCard, text: TextModel, candidates: CandidateTable) -> None:
        self.name = card.model
        self.card = card
        self.checksum = card.checksum()
        self.text = text
        self.candidates = candidates
        self.created_unix_seconds = int(time.time())
        self.tool_call_parser = _installed(card.tool_call_parser, plugins().tool_call_parsers)
        self.reasoning_parser = _installed(card.reasoning_parser, plugins().reasoning_parsers)

    @property
    def context_length_tokens(self) -> int:
        """Prompt and answer together."""
        return self.card.context_length_tokens


def _installed(name: str | None, registry: NamedRegistry[Any]) -> str | None:
    """`name` if its parser is installed here; without it the model's text is passed on as it is."""
    if name and name not in registry.names():
        logger.warning("there is no %s named %r here; the model's text is not parsed", registry.kind, name)
        return None
    return name or None


class ServedModels:
    """Models by name and alias, kept current by discovery."""

    def __init__(self, fetcher: ArtifactFetcher, make_candidates: Callable[[str], CandidateTable]) -> None:
        self._fetcher = fetcher
        self._make_candidates = make_candidates
        self._models: dict[str, ServedModel] = {}
        self._names: dict[str, str] = {}
        self._pending: dict[str, list[InstanceRecord]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._caught_up = False
        self._unreadable = False

    def on_instance(self, kind: Literal["put", "delete"], record: InstanceRecord) -> None:
        """Listener of `dynamo.runtime.instances.Instances`."""
        if kind == "delete":
            # A process may serve other endpoints too: only the one with the model's card matters here.
            if record.card is not None:
                self._remove(record.instance_id)
        elif record.card is not None and record.card.mode is not DisaggregationMode.PREFILL:
            self._add(record, record.card)

    def get(self, name: str) -> ServedModel:
        """The model that a client calls `name`, with at least one worker.

        Raises:
            ModelNotFound: no worker ever announced it, or the API key may not use it; the message lists what is served.
            NoInstances: it is known, and nobody serves it now.
        """
        known = self._names.get(name)
        identity = current_identity()
        if not identity.may_use(name, known or name) or (known is None and name not in self._announced()):
            usable = [repr(model.name) for model in self.ready() if identity.may_use(model.name)]
            served = ", ".join(usable) or "none yet"
            raise ModelNotFound(f"the model {name!r} does not exist; served: {served}", param="model")
        if known is None:
            raise NoInstances(f"the tokenizer of {name!r} is still being read", param="model", retry_after_seconds=1)
        model = self._models.get(known)
        if model is None or not len(model.candidates):
            raise NoInstances(f"no worker serves {name!r} now", param="model", retry_after_seconds=2)
        return model

    def ready(self) -> list[ServedModel]:
        """Models with at least one worker, by name."""
        return [self._models[name] for name in sorted(self._models) if len(self._models[name].candidates)]

    def names(self) -> dict[str, ServedModel]:
        """Every name and alias of the models that are ready and that the API key may use."""
        ready = {model.name: model for model in self.ready()}
        identity = current_identity()
        return {
            name: ready[target]
            for name, target in sorted(self._names.items())
            if target in ready and identity.may_use(name, target)
        }

    def state(self) -> str | None:
        """None once every model that was announced at the start can be served; see `dynamo.runtime.health.Health`."""
        if self._caught_up:
            return None
        if self._pending:
            return f"reading the tokenizers of {', '.join(sorted(self._pending))}"
        if not all(model.candidates.caught_up() for model in self._models.values()):
            return "reading what the workers have cached"
        self._caught_up = True
        return None

    def configure(self, change: Callable[[CandidateTable], None]) -> None:
        """Apply `change` to the candidates of every model."""
        for model in self._models.values():
            change(model.candidates)

    def on_load(self, payload: bytes) -> None:
        """Listener of the event plane: what a worker says of its load."""
        try:
            load = _decode_load(payload)
        except msgspec.MsgspecError as error:
            logger.warning("a load message is not readable: %s", error)
            return
        model = self._models.get(load.model)
        if model is not None:
            model.candidates.take_load(load, time.monotonic())

    def on_kv_events(self, payload: bytes) -> None:
        """Listener of the event plane: how a worker's cache has changed."""
        try:
            batch = _decode_events(payload)
        except msgspec.MsgspecError as error:
            # One broken worker could fill the log.
            logger.log(logging.DEBUG if self._unreadable else logging.WARNING, "unreadable KV events: %s", error)
            self._unreadable = True
            return
        model = self._models.get(batch.model)
        if model is not None:
            model.candidates.take_events(batch)

    async def close(self) -> None:
        """Stop what is being fetched."""
        for model in self._models.values():
            await model.candidates.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _add(self, record: InstanceRecord, card: ModelDeploymentCard) -> None:
        model = self._models.get(card.model)
        if model is None:
            waiting = self._pending.setdefault(card.model, [])
            waiting.append(record)
            if len(waiting) == 1:
                self._spawn(self._load(card.model))
        elif card.checksum() != model.checksum and len(model.candidates):
            logger.error(
                "worker %014x is not used: its tokenizer or chat template for %r differs from that of the workers "
                "that serve it already",
                record.instance_id,
                card.model,
            )
        elif card.checksum() != model.checksum:
            # The model was replaced while nobody served it: begin anew.
            del self._models[card.model]
            self._add(record, card)
        else:
            self._put(model, record, card)

    def _put(self, model: ServedModel, record: InstanceRecord, card: ModelDeploymentCard) -> None:
        model.card = card
        model.candidates.put(record)
        for name in (card.model, *card.aliases):
            owner = self._names.setdefault(name, card.model)
            if owner != card.model:
                logger.warning("alias %r of %r is taken by %r", name, card.model, owner)

    def _remove(self, instance_id: int) -> None:
        for model in self._models.values():
            model.candidates.remove(instance_id)
        for name, records in self._pending.items():
            self._pending[name] = [record for record in records if record.instance_id != instance_id]

    def _announced(self) -> set[str]:
        """Names and aliases of the models that workers have announced and that cannot be served yet."""
        cards = [record.card for records in self._pending.values() for record in records]
        return {name for card in cards if card is not None for name in (card.model, *card.aliases)}

    async def _load(self, name: str) -> None:
        """Fetch the text side from whichever announced worker gives it, then let all of them in."""
        while self._pending.get(name):
            record = self._pending[name][0]
            card = record.card
            assert card is not None
            try:
                text = await self._fetcher.fetch(record, card)
            except DynamoError as error:
                logger.warning(
                    "cannot read the tokenizer of %r from %014x: %s", name, record.instance_id, error.message
                )
                waiting = self._pending[name]
                if record in waiting:
                    waiting.append(waiting.pop(waiting.index(record)))
                await asyncio.sleep(0.5)
                continue
            model = ServedModel(card, text, self._make_candidates(name))
            self._models[name] = model
            for waiting_record in self._pending.pop(name):
                if waiting_record.card is not None:
                    self._add(waiting_record, waiting_record.card)
            logger.info("model %r is served", name)
            return
        self._pending.pop(name, None)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
