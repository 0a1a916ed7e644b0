"""A routing decision: filters, then the cost and weighted scorers, then one picker. Router modes are ready-made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

from dynamo.errors import ConfigError, NoInstances
from dynamo.plugins import Plugins
from dynamo.protocols.routing import CandidateView, RouteRequest, WorkerFilter, WorkerPicker, WorkerScorer
from dynamo.router.core.cost import CostParameters, WorkerFacts, costs
from dynamo.router.pickers import Softmax
from dynamo.router.settings import RouterSettings

__all__ = ["Choice", "RouterPolicy", "WorkerWithFacts", "policy_for_mode", "router_modes"]

#: Candidate attributes that cost something to find out for a request.
_FACTS = frozenset({"overlap_blocks", "active_prefill_tokens", "active_decode_blocks"})


class WorkerWithFacts(CandidateView, Protocol):
    """A candidate whose facts have been found out for the request at hand."""

    @property
    def facts(self) -> WorkerFacts:
        """What the cost is made of."""
        ...


class Choice(NamedTuple):
    """One decision. The lists have one entry per candidate that passed the filters."""

    chosen: CandidateView
    candidates: Sequence[WorkerWithFacts]
    scores: list[float]
    """Higher is better; minus the cost in blocks, where there is a cost."""


class _Recipe(NamedTuple):
    """The parts of a mode that is more than a picker."""

    filters: tuple[str, ...]
    scorers: tuple[tuple[str, float], ...]
    picker: str


_MODES = {
    "kv": _Recipe((), (), "softmax"),
    "least-loaded": _Recipe((), (("active-requests", 1.0),), "max-score"),
    "power-of-two": _Recipe((), (("active-requests", 1.0),), "power-of-two"),
    "direct": _Recipe(("pinned",), (), "round-robin"),
}
#: Pickers that mean nothing without scores are no modes.
_NOT_MODES = frozenset({"max-score", "softmax"})


class RouterPolicy:
    """Filters, a cost, scorers with weights and a picker; holds no state of workers."""

    def __init__(
        self,
        filters: Sequence[WorkerFilter],
        scorers: Sequence[tuple[WorkerScorer, float]],
        picker: WorkerPicker,
        cost: CostParameters | None = None,
    ) -> None:
        """With a `cost`, scores begin at minus each candidate's cost, and a scorer's weight is in blocks."""
        self._filters = filters
        self._scorers = scorers
        self._picker = picker
        self._cost = cost
        self.needs_facts = cost is not None or any(_FACTS & set(scorer.consumes) for scorer, _ in scorers)
        """Whether candidates must have their facts before :meth:`decide`."""

    def decide(self, request: RouteRequest, candidates: Sequence[WorkerWithFacts]) -> Choice:
        """The candidate that should take `request`, and what the others had.

        Raises:
            NoInstances: no candidate is left after filtering.
        """
        left: Sequence[CandidateView] = candidates
        for worker_filter in self._filters:
            left = worker_filter.filter(request, left)
        if not left:
            raise NoInstances(f"no worker of {request.model!r} can take this request", retry_after_seconds=1)
        candidates = cast("Sequence[WorkerWithFacts]", left)  # filters choose among what they get
        if self._cost is None:
            scores = [0.0] * len(candidates)
        else:
            parameters = self._cost.overridden(request.overrides)
            facts = [candidate.facts for candidate in candidates]
            scores = [-cost for cost in costs(parameters, request.prompt_tokens, facts)]
        for scorer, weight in self._scorers:
            for index, score in enumerate(scorer.score(request, candidates)):
                scores[index] += weight * score
        return Choice(self._picker.pick(request, candidates, scores), candidates, scores)


def router_modes(plugins: Plugins) -> list[str]:
    """Every name that ``--router-mode`` takes."""
    return sorted({*_MODES, *plugins.pickers.names()} - _NOT_MODES)


def policy_for_mode(mode: str, plugins: Plugins, settings: RouterSettings | None = None) -> RouterPolicy:
    """A fresh policy for ``--router-mode``; a picker's name is a mode that uses it alone.

    Raises:
        ConfigError: there is no such mode (the hint lists those there are), or an added scorer is not NAME=BLOCKS.
        PluginNotFound: an added filter or scorer is not installed.
    """
    settings = settings or RouterSettings()
    modes = router_modes(plugins)
    if mode not in modes:
        raise ConfigError(
            f"unknown router mode {mode!r}", param="router_mode", hint=f"choose one of {', '.join(modes)}"
        )
    recipe = _MODES.get(mode, _Recipe((), (), mode))
    scorers = [*recipe.scorers, *map(_weighted, settings.router_scorers)]
    picker: WorkerPicker = (
        Softmax(settings.router_temperature) if mode == "kv" else plugins.pickers.get(recipe.picker)()
    )
    return RouterPolicy(
        [plugins.filters.get(name)() for name in (*recipe.filters, *settings.router_filters, "not-excluded")],
        [(plugins.scorers.get(name)(), weight) for name, weight in scorers],
        picker,
        _cost_parameters(settings) if mode == "kv" else None,
    )


def _cost_parameters(settings: RouterSettings) -> CostParameters:
    return CostParameters(
        overlap_score_credit=settings.router_kv_overlap_score_credit,
        overlap_score_credit_decay=settings.router_kv_overlap_score_credit_decay,
        prefill_load_scale=settings.router_prefill_load_scale,
        active_request_blocks=settings.router_decode_active_request_weight,
        host_cache_hit_weight=settings.router_host_cache_hit_weight,
        disk_cache_hit_weight=settings.router_disk_cache_hit_weight,
    )


def _weighted(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise ConfigError(
            f"router scorer {text!r} has no weight",
            param="router_scorers",
            hint="write it as NAME=BLOCKS, as in zone=8",
        ) from None
