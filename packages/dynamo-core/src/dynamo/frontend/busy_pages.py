"""``/busy_threshold``: from when on workers of a model count as busy, changed while the deployment runs.

What is set here is kept in a file of the state directory, so that all frontends of the machine use it, and still do
after a restart; it goes before flags and etcd. `dynamo.router.thresholds` says what the numbers mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from dynamo.errors import ConfigError, EngineError, InvalidRequest
from dynamo.frontend.models import ServedModels
from dynamo.frontend.requests import decode_body
from dynamo.frontend.routes import Access, Route
from dynamo.frontend.security.watching import FileWatch
from dynamo.router.thresholds import BusyThresholds
from dynamo.runtime.http import Exchange

__all__ = ["BusyPages", "ThresholdChange"]

_BUSY_THRESHOLD = "/busy_threshold"


class ThresholdChange(msgspec.Struct):
    """``POST /busy_threshold``. What is left out stays; null switches a threshold off."""

    model: str
    active_decode_blocks_threshold: float | msgspec.UnsetType | None = msgspec.UNSET
    active_prefill_tokens_threshold: int | msgspec.UnsetType | None = msgspec.UNSET


class BusyPages:
    """The handlers, and what they have set.

    Raises:
        ConfigError: the file is there and cannot be read.
    """

    def __init__(self, path: Path, models: ServedModels) -> None:
        self._path = path
        self._models = models
        self._set: dict[str, BusyThresholds] = {}
        self.watch = FileWatch([path], self._load, "busy thresholds", threaded=False)
        """Follows what the other processes set."""
        self._load()

    def of(self, model: str) -> BusyThresholds | None:
        """What was set for `model`; None: the settings hold."""
        return self._set.get(model)

    def routes(self) -> list[Route]:
        """What is served."""
        admin, one_model = Access.ADMIN, f"{_BUSY_THRESHOLD}/{{model}}"
        return [
            Route("GET", _BUSY_THRESHOLD, self.every, "From when on workers are busy, by model.", admin),
            Route("POST", _BUSY_THRESHOLD, self.change, "Say from when on.", admin, ThresholdChange),
            Route("DELETE", one_model, self.reset, "Back to the thresholds of the settings.", admin),
        ]

    def every(self, exchange: Exchange) -> None:
        """The thresholds in force."""
        tables = self._models.tables()
        exchange.respond_json(200, {"thresholds": [_body(name, table.thresholds) for name, table in tables.items()]})

    def change(self, exchange: Exchange) -> None:
        """Set the thresholds of one model; a body without any asks for those in force."""
        request = decode_body(exchange.body, ThresholdChange)
        name = self._models.get(request.model).base_name
        table = self._models.tables()[name]
        wanted = msgspec.structs.asdict(table.thresholds)
        given = msgspec.structs.asdict(request)
        changes = {key: given[key] for key in wanted if given[key] is not msgspec.UNSET}
        if changes:
            self._write(name, _checked({**wanted, **changes}))
        exchange.respond_json(200, _body(name, table.thresholds))

    def reset(self, exchange: Exchange) -> None:
        """Forget what was set for one model."""
        name = self._models.get(exchange.params).base_name
        self._write(name, None)
        exchange.respond_json(200, _body(name, self._models.tables()[name].thresholds))

    def _load(self) -> None:
        self._set = _read(self._path)
        for name, table in self._models.tables().items():
            table.set_thresholds(self._set.get(name))

    def _write(self, model: str, thresholds: BusyThresholds | None) -> None:
        """Change the file of a few hundred bytes, in which other processes may have changed other models just now."""
        try:
            with _locked(self._path):
                entries = {name: entry for name, entry in _read(self._path).items() if name != model}
                if thresholds is not None:
                    entries[model] = thresholds
                new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
                new.write_bytes(msgspec.json.format(msgspec.json.encode(entries)))
                new.replace(self._path)
        except OSError as error:
            raise EngineError(f"cannot keep the thresholds in {self._path}: {error.strerror}") from error
        self._load()


def _checked(fields: dict[str, object]) -> BusyThresholds:
    try:
        return msgspec.convert(fields, BusyThresholds)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        raise InvalidRequest(f"{text[:1].lower()}{text[1:]}", param=path.rstrip("`") or None) from error


def _read(path: Path) -> dict[str, BusyThresholds]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, BusyThresholds])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"cannot read the busy thresholds in {path}: {error}", hint="remove the file") from error


def _body(model: str, thresholds: BusyThresholds) -> dict[str, object]:
    return {"model": model, **msgspec.structs.asdict(thresholds)}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
