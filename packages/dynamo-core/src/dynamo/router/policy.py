"""A routing decision: filters, then the cost and weighted scorers, then one picker. Router modes are ready-made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar, cast

from dynamo.errors import ConfigError, NoInstances, PluginError
from dynamo.plugins import Plugins
from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.routing import (
    CandidateView,
    LenientPicker,
    RouteListener,
    RouteRequest,
    SeededPicker,
    WorkerFilter,
    WorkerPicker,
    WorkerScorer,
)
from dynamo.router.core.cost import DEFAULT_COST, UPSTREAM_COST, CostParameters, CostProfiles, WorkerFacts, costs
from dynamo.router.pickers import Softmax
from dynamo.router.scorers import SessionAffinity
from dynamo.router.settings import RouterSettings

__all__ = ["Choice", "RouterPolicy", "WorkerWithFacts", "policy_for_mode", "router_modes"]

#: Candidate attributes that cost something to find out for a request.
_FACTS = frozenset({"overlap_blocks", "active_prefill_tokens", "active_decode_blocks"})


WorkerT = TypeVar("WorkerT", bound=CandidateView)


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
    cost: CostParameters | None = None


_MODES = {
    "kv": _Recipe((), (), "softmax", DEFAULT_COST),
    "kv-upstream": _Recipe((), (), "softmax", UPSTREAM_COST),
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
        cost: CostParameters | CostProfiles | None = None,
        requirements: Sequence[WorkerFilter] = (),
    ) -> None:
        """With a `cost`, scores begin at minus each candidate's cost, and a scorer's weight is in cached blocks.

        One set of parameters stands for the profiles that follow from it (`CostProfiles.from_aggregated`).
        `requirements` are filters on what a worker is, not on how it does: see :meth:`able`.
        """
        self._filters = filters
        self._requirements = requirements
        self._scorers = scorers
        self._picker = picker
        self._cost = CostProfiles.from_aggregated(cost) if isinstance(cost, CostParameters) else cost
        self._listeners = [scorer for scorer, _ in scorers if isinstance(scorer, RouteListener)]
        self.needs_facts = cost is not None or any(_FACTS & set(scorer.consumes) for scorer, _ in scorers)
        """Whether candidates must have their facts before :meth:`decide`."""
        self.looks_at_load = cost is not None or bool(scorers)
        """Whether what other routers send makes a difference."""
        self.lenient = isinstance(picker, LenientPicker) and picker.lenient
        """Whether workers may offer themselves; see `dynamo.protocols.routing.LenientPicker`."""

    def keep_sessions(self, of: RouterPolicy) -> None:
        """Know the sessions that the policy before this one knew."""
        known = [listener for listener in of._listeners if isinstance(listener, SessionAffinity)]
        own = [listener for listener in self._listeners if isinstance(listener, SessionAffinity)]
        for affinity, before in zip(own, known, strict=False):
            affinity.keep_sessions(before)

    def able(self, request: RouteRequest, candidates: Sequence[WorkerT]) -> Sequence[WorkerT]:
        """Those that could serve `request` at all, however busy or broken they are at this moment.

        Raises:
            NoInstances: there is none.
        """
        return _filtered(self._requirements, request, candidates)

    def eligible(self, request: RouteRequest, candidates: Sequence[WorkerT]) -> Sequence[WorkerT]:
        """Those that :meth:`decide` would choose from.

        Raises:
            NoInstances: there is none.
        """
        return _filtered(self._filters, request, candidates)

    def decide(self, request: RouteRequest, candidates: Sequence[WorkerWithFacts]) -> Choice:
        """The candidate that should take `request`, and what the others had.

        Raises:
            NoInstances: no candidate is left after filtering.
            PluginError: a scorer gave something else than a finite score for each.
        """
        candidates = self.eligible(request, candidates)
        unit = 1.0
        if self._cost is None:
            scores = [0.0] * len(candidates)
        else:
            parameters = self._cost.of(request.mode).overridden(request.overrides)
            unit = parameters.cached_block
            facts = [candidate.facts for candidate in candidates]
            scores = [-cost for cost in costs(parameters, request.prompt_tokens, facts)]
        for scorer, weight in self._scorers:
            for index, score in enumerate(_scored(scorer, request, candidates)):
                scores[index] += unit * weight * score
        return Choice(self._picker.pick(request, candidates, scores), candidates, scores)

    def routed(self, request: RouteRequest, worker: WorkerKey, now: float) -> None:
        """`request` went to `worker`; a scorer may want to know. `now` is any monotonic clock, in seconds."""
        for listener in self._listeners:
            listener.routed(request, worker, now)


def _scored(scorer: WorkerScorer, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[float]:
    """What `scorer` says; a score that is not finite would make every comparison with it false, whoever is better."""
    scores = scorer.score(request, candidates)
    wrong = [score for score in scores if not math.isfinite(score)]
    if wrong or len(scores) != len(candidates):
        given = f"a score of {wrong[0]}" if wrong else f"{len(scores)} scores for {len(candidates)} workers"
        raise PluginError(
            f"the router scorer {type(scorer).__module__}.{type(scorer).__qualname__} gave {given}",
            hint="leave it out of --router-scorers until it gives each worker a number from 0 to 1",
        )
    return scores


def _filtered(
    filters: Sequence[WorkerFilter], request: RouteRequest, candidates: Sequence[WorkerT]
) -> Sequence[WorkerT]:
    left: Sequence[CandidateView] = candidates
    for worker_filter in filters:
        left = worker_filter.filter(request, left)
    if not left:
        raise NoInstances(f"no worker of {request.model!r} can take this request", retry_after_seconds=1)
    return cast("Sequence[WorkerT]", left)  # filters choose among what they get


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
    weighted = [*recipe.scorers, *map(_weighted, settings.router_scorers)]
    scorers: list[tuple[WorkerScorer, float]] = [(plugins.scorers.get(name)(), weight) for name, weight in weighted]
    if settings.router_session_affinity_ttl_seconds is not None:
        affinity = SessionAffinity(settings.router_session_affinity_ttl_seconds)
        scorers.append((affinity, settings.router_session_affinity_blocks))
    picker: WorkerPicker = (
        Softmax(settings.router_temperature) if recipe.cost is not None else plugins.pickers.get(recipe.picker)()
    )
    if settings.router_seed is not None and isinstance(picker, SeededPicker):
        picker.seed(settings.router_seed)
    return RouterPolicy(
        [plugins.filters.get(name)() for name in (*recipe.filters, *settings.router_filters, "not-excluded")],
        scorers,
        picker,
        _cost_parameters(settings, recipe.cost) if recipe.cost is not None else None,
        [plugins.filters.get(name)() for name in ("lora", "pinned")],
    )


def _cost_parameters(settings: RouterSettings, mode: CostParameters) -> CostParameters:
    """Those of the mode, but where the settings say otherwise."""

    def chosen(value: float | None, default: float) -> float:
        return default if value is None else value

    return CostParameters(
        overlap_score_credit=settings.router_kv_overlap_score_credit,
        overlap_score_credit_decay=settings.router_kv_overlap_score_credit_decay,
        prefill_load_scale=chosen(settings.router_prefill_load_scale, mode.prefill_load_scale),
        active_request_blocks=settings.router_decode_active_request_weight,
        host_cache_hit_weight=settings.router_host_cache_hit_weight,
        disk_cache_hit_weight=settings.router_disk_cache_hit_weight,
        recompute_load_scale=chosen(settings.router_recompute_load_scale, mode.recompute_load_scale),
        active_request_tokens=chosen(settings.router_active_request_tokens, mode.active_request_tokens),
        recent_load_tokens=chosen(settings.router_recent_load_tokens, mode.recent_load_tokens),
    )


def _weighted(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ConfigError(
            f"router scorer {text!r} has no weight",
            param="router_scorers",
            hint="write it as NAME=BLOCKS, as in zone=8",
        )
    return name, weight
