"""Which workers hold which LoRA adapters. `ServedModels` keeps one table, so that adapters can be called as models."""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["AdapterTable"]

#: Names that nobody holds any more and that are still known; the oldest are forgotten, and answered with 404.
_GONE_LIMIT = 4096


class AdapterTable:
    """Adapters by name, with the workers that hold them, in the order in which they came."""

    def __init__(self) -> None:
        self._holders: dict[str, dict[int, str]] = {}
        """Name to instance id to the base model of that worker."""
        self._gone: dict[str, None] = {}
        """Ordered; values mean nothing."""

    def put(self, instance_id: int, base: str, names: Collection[str]) -> list[str]:
        """A worker of model `base` holds `names`, and no others. Which of them are new here."""
        self._drop(instance_id, [name for name, holders in self._holders.items() if name not in names])
        new = [name for name in names if name not in self._holders]
        for name in names:
            self._gone.pop(name, None)
            self._holders.setdefault(name, {})[instance_id] = base
        return new

    def remove(self, instance_id: int) -> None:
        """A worker is gone."""
        self._drop(instance_id, list(self._holders))

    def base_of(self, name: str) -> str | None:
        """The model that adapter `name` is of, that of its first holder; None when nobody holds it."""
        holders = self._holders.get(name)
        return next(iter(holders.values())) if holders else None

    def known(self, name: str) -> bool:
        """Whether somebody holds it, or did."""
        return name in self._holders or name in self._gone

    def names(self) -> list[str]:
        """Those that somebody holds."""
        return list(self._holders)

    def _drop(self, instance_id: int, names: Iterable[str]) -> None:
        for name in names:
            self._holders[name].pop(instance_id, None)
            if not self._holders[name]:
                del self._holders[name]
                self._gone[name] = None
        while len(self._gone) > _GONE_LIMIT:
            del self._gone[next(iter(self._gone))]
