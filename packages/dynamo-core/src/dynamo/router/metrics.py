"""Metrics of the router: what was decided, how much of the prompts was cached, and what workers' events were worth."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dynamo.router.core.cost import WorkerFacts

__all__ = ["ModelRouterMetrics", "RouterMetrics"]

_PREFIX = "dynamo_router"
_RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0)


class RouterMetrics:
    """All families of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(f"{_PREFIX}_decisions", "Workers chosen.", ["model"], registry=registry)
        self.prompt_blocks = Counter(
            f"{_PREFIX}_prompt_blocks", "Full KV blocks of routed prompts.", ["model"], registry=registry
        )
        self.overlap_blocks = Counter(
            f"{_PREFIX}_overlap_blocks", "Of them, blocks that the chosen worker held.", ["model"], registry=registry
        )
        self.lost_blocks = Counter(
            f"{_PREFIX}_lost_overlap_blocks",
            "Blocks that another candidate held and the chosen one did not.",
            ["model"],
            registry=registry,
        )
        self.hit_rate = Histogram(
            f"{_PREFIX}_kv_hit_rate",
            "Part of a prompt's blocks that the chosen worker held.",
            ["model"],
            buckets=_RATES,
            registry=registry,
        )
        self.kv_events = Counter(
            f"{_PREFIX}_kv_events",
            "Batches of KV events by what became of them, and wrong entries by kind.",
            ["model", "outcome"],
            registry=registry,
        )
        self.index_blocks = Gauge(
            f"{_PREFIX}_index_blocks", "Distinct blocks that are indexed.", ["model"], registry=registry
        )

    def of(self, model: str) -> ModelRouterMetrics:
        """The metrics of one model."""
        return ModelRouterMetrics(self, model)


class ModelRouterMetrics:
    """The families with one model's label bound."""

    def __init__(self, families: RouterMetrics, model: str) -> None:
        self._decisions = families.decisions.labels(model)
        self._prompt_blocks = families.prompt_blocks.labels(model)
        self._overlap_blocks = families.overlap_blocks.labels(model)
        self._lost_blocks = families.lost_blocks.labels(model)
        self._hit_rate = families.hit_rate.labels(model)
        self._kv_events = families.kv_events
        self._index_blocks = families.index_blocks.labels(model)
        self._model = model

    def watch_index(self, blocks: Callable[[], int]) -> None:
        """Ask `blocks` when metrics are read."""
        self._index_blocks.set_function(lambda: float(blocks()))

    def decided(self) -> None:
        """A worker was chosen."""
        self._decisions.inc()

    def overlapped(self, chosen: WorkerFacts, prompt_blocks: int, best_overlap: int) -> None:
        """What the chosen worker held of a prompt of `prompt_blocks`, at least one."""
        self._prompt_blocks.inc(prompt_blocks)
        self._overlap_blocks.inc(chosen.overlap_blocks)
        self._lost_blocks.inc(best_overlap - chosen.overlap_blocks)
        self._hit_rate.observe(chosen.overlap_blocks / prompt_blocks)

    def kv_event(self, outcome: str, number: int) -> None:
        """Batches or entries of KV events."""
        self._kv_events.labels(self._model, outcome).inc(number)
