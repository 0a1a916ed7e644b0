"""Metrics of the router: what was decided, how much of the prompts was cached, and what workers' events were worth."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from dynamo.router.core.cost import WorkerFacts

__all__ = ["ModelRouterMetrics", "PolicyFamilies", "RouterMetrics"]

_PREFIX = "dynamo_router"
#: Seconds; the first bucket has the decisions that nothing predicted would have beaten.
_REGRETS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0)


class PolicyFamilies:
    """The live policy, as ``live``, beside its shadows; only there with ``--router-shadow-mode``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model", "policy"]

        def counter(name: str, text: str, names: list[str] = labels) -> Counter:
            return Counter(f"{_PREFIX}_{name}", text, names, registry=registry)

        self.decisions = counter("policy_decisions", "Decisions that a policy took or would have taken.")
        self.agreements = counter("policy_agreements", "Of them, those with the choice of the live policy.")
        self.prompt_blocks = counter("policy_prompt_blocks", "Full KV blocks of those prompts.")
        self.overlap_blocks = counter("policy_overlap_blocks", "Of them, blocks that the policy's choice held.")
        self.ttft = Summary(
            f"{_PREFIX}_policy_predicted_ttft_seconds",
            "Time to the first token predicted for the policy's choice.",
            labels,
            registry=registry,
        )
        self.imbalance = Gauge(
            f"{_PREFIX}_policy_imbalance",
            "Most over mean of the uncached tokens that the policy gives each worker, over the last minutes.",
            labels,
            registry=registry,
        )
        self.errors = counter("shadow_errors", "Decisions at which a shadow policy failed.")
        self.skipped = counter("shadow_skipped", "Decisions not shown to shadow policies, for their time.", ["model"])
        self.seconds = counter("shadow_seconds", "Time that shadow policies took.", ["model"])


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
        self.regret = Histogram(
            f"{_PREFIX}_ttft_regret_seconds",
            "Time to the first token beyond the least predicted for the other candidates; 0 where it was less.",
            ["model"],
            buckets=_REGRETS,
            registry=registry,
        )
        self.prediction_error = Histogram(
            f"{_PREFIX}_ttft_prediction_error_seconds",
            "Absolute error of the time to the first token predicted for the chosen worker.",
            ["model"],
            buckets=_REGRETS,
            registry=registry,
        )
        self.policies = PolicyFamilies(registry)

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
        self._regret = families.regret.labels(model)
        self._prediction_error = families.prediction_error.labels(model)
        self._policies = families.policies
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

    def realised(self, regret_seconds: float | None, error_seconds: float) -> None:
        """A first token came; see `dynamo.router.regret`."""
        if regret_seconds is not None:
            self._regret.observe(max(0.0, regret_seconds))
        self._prediction_error.observe(error_seconds)

    def policy_decided(
        self, policy: str, chosen: WorkerFacts, prompt_blocks: int, ttft_seconds: float | None, *, agrees: bool
    ) -> None:
        """What a policy, live or shadow, chose or would have chosen."""
        families, labels = self._policies, (self._model, policy)
        families.decisions.labels(*labels).inc()
        families.agreements.labels(*labels).inc(agrees)
        families.prompt_blocks.labels(*labels).inc(prompt_blocks)
        families.overlap_blocks.labels(*labels).inc(chosen.overlap_blocks)
        if ttft_seconds is not None:
            families.ttft.labels(*labels).observe(ttft_seconds)

    def watch_imbalance(self, policy: str, imbalance: Callable[[], float]) -> None:
        """Ask `imbalance` when metrics are read."""
        self._policies.imbalance.labels(self._model, policy).set_function(imbalance)

    def shadow_failed(self, policy: str) -> None:
        """A shadow policy raised something."""
        self._policies.errors.labels(self._model, policy).inc()

    def shadow_skipped(self) -> None:
        """A decision was not shown to the shadows."""
        self._policies.skipped.labels(self._model).inc()

    def shadow_spent(self, seconds: float) -> None:
        """Time that the shadows took for one decision."""
        self._policies.seconds.labels(self._model).inc(seconds)
