"""A routing decision: filters, then weighted scorers, then one picker. Router modes are ready-made policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dynamo.errors import ConfigError, NoInstances
from dynamo.plugins import Plugins
from dynamo.protocols.routing import CandidateView, RouteRequest, WorkerFilter, WorkerPicker, WorkerScorer

__all__ = ["RouterPolicy", "policy_for_mode", "router_modes"]


class _Recipe(NamedTuple):
    """The parts of a mode that is more than a picker."""

    filters: tuple[str, ...]
    scorers: tuple[tuple[str, float], ...]
    picker: str


_MODES = {
    "least-loaded": _Recipe((), (("active-requests", 1.0),), "max-score"),
    "direct": _Recipe(("pinned",), (), "round-robin"),
}
#: Pickers that mean nothing without scores are no modes.
_NOT_MODES = frozenset({"max-score"})


class RouterPolicy:
    """Filters, scorers with weights and a picker; holds no state of workers."""

    def __init__(
        self,
        filters: Sequence[WorkerFilter],
        scorers: Sequence[tuple[WorkerScorer, float]],
        picker: WorkerPicker,
    ) -> None:
        self._filters = filters
        self._scorers = scorers
        self._picker = picker

    def select(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> CandidateView:
        """The candidate that should take `request`.

        Raises:
            NoInstances: no candidate is left after filtering.
        """
        for worker_filter in self._filters:
            candidates = worker_filter.filter(request, candidates)
        if not candidates:
            raise NoInstances(f"no worker of {request.model!r} can take this request", retry_after_seconds=1)
        scores = [0.0] * len(candidates)
        for scorer, weight in self._scorers:
            for index, score in enumerate(scorer.score(request, candidates)):
                scores[index] += weight * score
        return self._picker.pick(request, candidates, scores)


def router_modes(plugins: Plugins) -> list[str]:
    """Every name that ``--router-mode`` takes."""
    return sorted({*_MODES, *plugins.pickers.names()} - _NOT_MODES)


def policy_for_mode(mode: str, plugins: Plugins) -> RouterPolicy:
    """A fresh policy for ``--router-mode``; a picker's name is a mode that uses it alone.

    Raises:
        ConfigError: there is no such mode; the hint lists those there are.
    """
    modes = router_modes(plugins)
    if mode not in modes:
        raise ConfigError(
            f"unknown router mode {mode!r}", param="router_mode", hint=f"choose one of {', '.join(modes)}"
        )
    recipe = _MODES.get(mode, _Recipe((), (), mode))
    return RouterPolicy(
        [plugins.filters.get(name)() for name in (*recipe.filters, "not-excluded")],
        [(plugins.scorers.get(name)(), weight) for name, weight in recipe.scorers],
        plugins.pickers.get(recipe.picker)(),
    )
