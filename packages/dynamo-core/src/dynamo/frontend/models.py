"""The models that this frontend serves: appear with their first worker, vanish for clients with their last."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from typing_extensions import Self

from dynamo.errors import DynamoError, ModelNotFound, NoInstances
from dynamo.frontend.adapters import AdapterTable
from dynamo.frontend.artifact_fetch import ArtifactFetcher
from dynamo.frontend.render_time import RenderTime
from dynamo.frontend.security.identity import current_identity
from dynamo.plugins import NamedRegistry, plugins
from dynamo.preprocessor import TextModel
from dynamo.preprocessor.prefix_cache import PrefixCache
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import DisaggregationMode
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.router.candidates import CandidateTable
from dynamo.router.worker_feeds import WorkerFeeds
from dynamo.runtime.tasks import Tasks

__all__ = ["ServedModel", "ServedModels"]

logger = logging.getLogger(__name__)

#: Of a name that nobody has announced, which may be as long as a body.
_SHOWN_CHARACTERS = 256
#: Before the text side of a model is asked for again; twice as long each time, up to the second one.
_RETRY_SECONDS = (0.5, 2.0)


class ServedModel:
    """One model: its text side and the workers that serve it. A LoRA adapter of it is a model too, see `adapter`."""

    def __init__(
        self, card: ModelDeploymentCard, text: TextModel, candidates: CandidateTable, tokenizer_cache_bytes: int = 0
    ) -> None:
        self.name = card.model
        self.base_name = card.model
        self.lora: str | None = None
        """The adapter that requests for this model name, which `name` is then."""
        self.card = card
        self.checksum = card.checksum()
        self.text = text
        self.candidates = candidates
        self.prefixes = PrefixCache(text.tokenizer, tokenizer_cache_bytes)
        self.render_time = RenderTime()
        self.created_unix_seconds = int(time.time())
        self.tool_call_parser = _installed(card.tool_call_parser, plugins().tool_call_parsers)
        self.reasoning_parser = _installed(card.reasoning_parser, plugins().reasoning_parsers)

    @property
    def context_length_tokens(self) -> int:
        """Prompt and answer together."""
        return self.card.context_length_tokens

    def adapter(self, name: str) -> Self:
        """This model with a LoRA adapter: the same text side and candidates, of which the router takes the holders."""
        made = copy.copy(self)
        made.name = made.lora = name
        return made


def _installed(name: str | None, registry: NamedRegistry[Any]) -> str | None:
    """`name` if its parser is installed here; without it the model's text is passed on as it is."""
    if name and name not in registry.names():
        logger.warning("there is no %s named %r here; the model's text is not parsed", registry.kind, name)
        return None
    return name or None


class ServedModels:
    """Models by name and alias, kept current by discovery."""

    def __init__(
        self,
        fetcher: ArtifactFetcher,
        make_candidates: Callable[[str], CandidateTable],
        tokenizer_cache_bytes: int = 0,
    ) -> None:
        """Each model keeps tokenized beginnings of prompts in up to `tokenizer_cache_bytes`."""
        self._fetcher = fetcher
        self._make_candidates = make_candidates
        self._tokenizer_cache_bytes = tokenizer_cache_bytes
        self._models: dict[str, ServedModel] = {}
        self._names: dict[str, str] = {}
        self._adapters = AdapterTable()
        self._pending: dict[str, list[InstanceRecord]] = {}
        """Of models whose text side is being read, by one task each: the workers that have come for it."""
        self._refused: dict[str, dict[int, InstanceRecord]] = {}
        """Workers whose text side differs from what is served, oldest first: they come in when nobody else is left."""
        self._tasks = Tasks()
        self._caught_up = False
        self.feeds = WorkerFeeds(self._table)
        """Listeners of what workers publish."""

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
        if known is None and self._adapters.known(name):
            return self._get_adapter(name)
        identity = current_identity()
        if not identity.may_use(name, known or name) or (known is None and name not in self._announced()):
            raise self._not_found(name)
        if known is None:
            raise NoInstances(f"the tokenizer of {name!r} is still being read", param="model", retry_after_seconds=1)
        model = self._models.get(known)
        if model is None or not len(model.candidates):
            raise NoInstances(f"no worker serves {name!r} now", param="model", retry_after_seconds=2)
        return model

    def _table(self, name: str) -> CandidateTable | None:
        model = self._models.get(name)
        return None if model is None else model.candidates

    def _get_adapter(self, name: str) -> ServedModel:
        # A key that may use the base model may not therefore use what was trained on somebody's data.
        if not current_identity().may_use(name):
            raise self._not_found(name)
        base = self._models.get(self._adapters.base_of(name) or "")
        if base is None:
            raise NoInstances(f"no worker holds the LoRA {name!r} now", param="model", retry_after_seconds=2)
        return base.adapter(name)

    def _not_found(self, name: str) -> ModelNotFound:
        identity = current_identity()
        usable = [repr(model.name) for model in self.ready() if identity.may_use(model.name)]
        served = ", ".join(usable) or "none yet"
        return ModelNotFound(f"the model {name[:_SHOWN_CHARACTERS]!r} does not exist; served: {served}", param="model")

    def knows(self, name: str) -> bool:
        """Whether a worker has ever announced `name`; if so, requests for it are worth waiting with."""
        return name in self._names or self._adapters.known(name) or name in self._announced()

    def announced_names(self) -> list[str]:
        """Everything that workers have announced, for whichever API key: adapters, then models and their aliases."""
        return list(dict.fromkeys((*self._adapters.names(), *self._announced(), *self._names)))

    def crowded(self, name: str) -> bool:
        """Whether requests wait at every worker of the model: work that is in no hurry should not come now."""
        model = self._models.get(self._names.get(name) or self._adapters.base_of(name) or name)
        return model is not None and model.candidates.crowded(time.monotonic())

    def ready(self) -> list[ServedModel]:
        """Models with at least one worker, by name; without their adapters."""
        return [self._models[name] for name in sorted(self._models) if len(self._models[name].candidates)]

    def names(self) -> dict[str, ServedModel]:
        """Every name, alias and adapter of the models that are ready and that the API key may use."""
        ready = {model.name: model for model in self.ready()}
        identity = current_identity()
        found = {
            name: ready[target]
            for name, target in self._names.items()
            if target in ready and identity.may_use(name, target)
        }
        for name in self._adapters.names():
            base = ready.get(self._adapters.base_of(name) or "")
            if base is not None and name not in self._names and identity.may_use(name):
                found[name] = base.adapter(name)
        return dict(sorted(found.items()))

    def state(self) -> str | None:
        """None once every model that was announced at the start can be served; see `dynamo.runtime.health.Health`."""
        if self._caught_up:
            return None
        awaited = sorted(name for name, records in self._pending.items() if records)
        if awaited:
            return f"reading the tokenizers of {', '.join(awaited)}"
        if not all(model.candidates.caught_up() for model in self._models.values()):
            return "reading what the workers have cached"
        self._caught_up = True
        return None

    def tables(self) -> dict[str, CandidateTable]:
        """The candidates of every model that was ever served, by its name."""
        return {name: model.candidates for name, model in sorted(self._models.items())}

    def configure(self, change: Callable[[CandidateTable], None]) -> None:
        """Apply `change` to the candidates of every model."""
        for model in self._models.values():
            change(model.candidates)

    def drain(self) -> None:
        """This process goes down: requests that wait for a worker are answered, those at one go on."""
        for model in self._models.values():
            model.candidates.drain()

    async def close(self) -> None:
        """Stop what is being fetched."""
        for model in self._models.values():
            await model.candidates.close()
        await self._tasks.cancel()

    def _add(self, record: InstanceRecord, card: ModelDeploymentCard) -> None:
        model = self._models.get(card.model)
        if model is None:
            first = card.model not in self._pending
            waiting = self._pending.setdefault(card.model, [])
            # Of one worker the last record counts: its adapters may have changed meanwhile.
            waiting[:] = [other for other in waiting if other.instance_id != record.instance_id] + [record]
            if first:
                self._tasks.spawn(self._load(card.model))
        elif card.checksum() == model.checksum:
            self._put(model, record, card)
        elif len(model.candidates):
            self._refuse(record, card.model)
        else:
            # The model was replaced while nobody served it: begin anew.
            self._forget(model)
            self._add(record, card)

    def _refuse(self, record: InstanceRecord, name: str) -> None:
        refused = self._refused.setdefault(name, {})
        if record.instance_id not in refused:
            logger.error(
                "worker %014x is not used while others serve %r: its tokenizer or chat template differs from theirs",
                record.instance_id,
                name,
            )
        refused[record.instance_id] = record

    def _forget(self, model: ServedModel) -> None:
        del self._models[model.card.model]
        model.candidates.drain()
        self._tasks.spawn(model.candidates.close())

    def _put(self, model: ServedModel, record: InstanceRecord, card: ModelDeploymentCard) -> None:
        model.card = card
        model.candidates.put(record)
        for name in (card.model, *card.aliases):
            owner = self._names.setdefault(name, card.model)
            if owner != card.model:
                logger.warning("alias %r of %r is taken by %r", name, card.model, owner)
        for name in self._adapters.put(record.instance_id, card.model, card.loras):
            if name in self._names:
                logger.warning("adapter %r of %r has the name of a model and cannot be used", name, card.model)

    def _remove(self, instance_id: int) -> None:
        for refused in self._refused.values():
            refused.pop(instance_id, None)
        self._adapters.remove(instance_id)
        for name, records in self._pending.items():
            self._pending[name] = [record for record in records if record.instance_id != instance_id]
        for model in list(self._models.values()):
            model.candidates.remove(instance_id)
            if not len(model.candidates):
                self._replace(model)

    def _replace(self, model: ServedModel) -> None:
        """The last worker is gone: those that it kept out come in, as after a rolling update of the text side.

        The newest goes first; whoever agrees with it serves, the others wait again.
        """
        refused = self._refused.pop(model.card.model, {})
        if refused:
            self._forget(model)
        for record in reversed(refused.values()):
            if record.card is not None:
                self._add(record, record.card)

    def _announced(self) -> set[str]:
        """Names, aliases and adapters of the models that workers have announced and that cannot be served yet."""
        cards = [record.card for records in self._pending.values() for record in records]
        return {name for card in cards if card is not None for name in (card.model, *card.aliases, *card.loras)}

    async def _load(self, name: str) -> None:
        """Get the text side from whichever announced worker gives it, then let all of them in. One task per model."""
        delay, longest = _RETRY_SECONDS
        while self._pending.get(name):
            record = self._pending[name][0]
            try:
                made = await self._read(record)
            except DynamoError as error:
                logger.warning(
                    "cannot read the tokenizer of %r from %014x: %s", name, record.instance_id, error.message
                )
            except Exception:
                # Whatever tokenizer, template or plugin did not bear: another worker may bring a better one.
                logger.exception("cannot make the model %r of what %014x gives", name, record.instance_id)
            else:
                self._models[name] = made
                # Gone before any is added: one that differs may begin the next reading.
                for waiting in self._pending.pop(name):
                    if waiting.card is not None:
                        self._add(waiting, waiting.card)
                logger.info("model %r is served", name)
                return
            self._pending[name].sort(key=lambda other: other.instance_id == record.instance_id)
            await asyncio.sleep(delay)
            delay = min(2 * delay, longest)
        self._pending.pop(name, None)

    async def _read(self, record: InstanceRecord) -> ServedModel:
        card = record.card
        assert card is not None
        text = await self._fetcher.fetch(record, card)
        return ServedModel(card, text, self._make_candidates(card.model), self._tokenizer_cache_bytes)
