"""Shadow policies: score live traffic beside the policy that acts, and never act.

`CandidateTable` shows them every decision (`--router-shadow-mode`). A shadow sees the workers as the live policy made
them: their caches and loads are not what they would be had the shadow been in charge, so what is counted here says how
the shadow would decide next, not where its own decisions would lead; ``dynamo replay`` says that.

A shadow cannot hurt: what it raises is counted and logged once, and its time is bounded by a share of one core, beyond
which decisions are not shown to it. Live and shadows are counted over the same decisions, so they can be compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from dynamo.config.loading import element_type
from dynamo.config.settings import nearest
from dynamo.errors import ConfigError
from dynamo.plugins import Plugins
from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.routing import RouteRequest
from dynamo.router.core.cost import uncached_tokens
from dynamo.router.metrics import ModelRouterMetrics
from dynamo.router.policy import Choice, RouterPolicy, WorkerWithFacts, policy_for_mode
from dynamo.router.regret import RegretMeter
from dynamo.router.settings import RouterSettings

__all__ = ["LIVE", "PolicyTally", "ShadowPolicies", "ShadowPolicy", "shadow_policies"]

logger = logging.getLogger(__name__)

#: Name of the policy that acts, in metrics and reports.
LIVE = "live"
#: Shadows may save up this much time.
_BURST_SECONDS = 0.05
#: What a worker was given counts half after this long.
_BALANCE_HALF_LIFE_SECONDS = 300.0
_LARGEST_EXPONENT = 512.0


class ShadowPolicy:
    """One policy under its name, as ``--router-shadow-mode`` writes it."""

    def __init__(self, name: str, policy: RouterPolicy) -> None:
        self.name = name
        self.policy = policy
        self.tally = PolicyTally(name)
        self.errors = 0


class PolicyTally:
    """What one policy chose, live or not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.decisions = self.agreements = 0
        self.prompt_blocks = self.overlap_blocks = 0
        self._predicted = 0
        self._predicted_sum = 0.0
        self._given: dict[WorkerKey, float] = {}
        self._present: Sequence[WorkerWithFacts] = ()
        self._origin = 0.0

    def count(
        self, chosen: WorkerWithFacts, candidates: Sequence[WorkerWithFacts], prompt_tokens: int, now: float
    ) -> int:
        """It chose `chosen` among `candidates`; the uncached tokens that the worker would have to compute."""
        facts = chosen.facts
        uncached = uncached_tokens(facts, prompt_tokens)
        self.decisions += 1
        self.prompt_blocks += prompt_tokens // facts.block_size
        self.overlap_blocks += facts.overlap_blocks
        self._give(chosen.key, uncached, now)
        self._present = candidates
        return uncached

    def predict(self, seconds: float) -> None:
        """The first token at its choice was predicted to take so long."""
        self._predicted += 1
        self._predicted_sum += seconds

    def imbalance(self) -> float:
        """Most over mean of the uncached tokens given to each worker of the last decision, lately; 1 is even."""
        given = [self._given.get(candidate.key, 0.0) for candidate in self._present]
        total = sum(given)
        return max(given) * len(given) / total if total else 1.0

    def to_json(self) -> dict[str, Any]:
        """For people and programs."""
        decided = max(1, self.decisions)
        return {
            "policy": self.name,
            "decisions": self.decisions,
            "agreement": round(self.agreements / decided, 4),
            "hit_rate": round(self.overlap_blocks / self.prompt_blocks, 4) if self.prompt_blocks else None,
            "imbalance": round(self.imbalance(), 3),
            "predicted_ttft_seconds": round(self._predicted_sum / self._predicted, 6) if self._predicted else None,
        }

    def _give(self, worker: WorkerKey, tokens: int, now: float) -> None:
        """Instead of halving what is old, what is new counts double: the ratios are the same."""
        exponent = (now - self._origin) / _BALANCE_HALF_LIFE_SECONDS
        if exponent > _LARGEST_EXPONENT:
            present = {candidate.key for candidate in self._present}
            shrink = 0.5**exponent
            self._given = {key: value * shrink for key, value in self._given.items() if key in present}
            self._origin, exponent = now, 0.0
        self._given[worker] = self._given.get(worker, 0.0) + tokens * 2.0**exponent


class ShadowPolicies:
    """The shadows of one model. `now` is the clock of the decisions, in seconds."""

    def __init__(
        self,
        shadows: Sequence[ShadowPolicy],
        regret: RegretMeter,
        *,
        cpu_share: float | None = None,
        metrics: ModelRouterMetrics | None = None,
    ) -> None:
        """`cpu_share` None: without a bound, for virtual time."""
        self._shadows = shadows
        self._regret = regret
        self._share = cpu_share
        self._metrics = metrics
        self._allowance = _BURST_SECONDS
        self._seen: float | None = None
        self.live = PolicyTally(LIVE)
        self.spent_seconds = 0.0
        self.skipped = 0
        """Decisions that were not shown because the share was used up."""
        if metrics is not None:
            for tally in self.tallies():
                metrics.watch_imbalance(tally.name, tally.imbalance)

    def unbind(self) -> None:
        """Let the shadows take whatever time they need: on virtual time nobody waits for them."""
        self._share = None

    def tallies(self) -> list[PolicyTally]:
        """The live policy's, then the shadows'."""
        return [self.live, *(shadow.tally for shadow in self._shadows)]

    def watch(self, request: RouteRequest, choice: Choice, candidates: Sequence[WorkerWithFacts], now: float) -> None:
        """The live policy made `choice` among `candidates`, whose facts are those that it saw."""
        if not self._may_run(now):
            self.skipped += 1
            if self._metrics is not None:
                self._metrics.shadow_skipped()
            return
        started = time.perf_counter()
        live = next(c for c in choice.candidates if c.key == choice.chosen.key)
        self._count(self.live, live, live, request, candidates, now)
        for shadow in self._shadows:
            try:
                chosen = shadow.policy.decide(request, candidates).chosen
                wanted = next(c for c in candidates if c.key == chosen.key)
                # What it remembers of its choices (sessions) are its own.
                shadow.policy.routed(request, wanted.key, now)
            except Exception:
                # A shadow may be anybody's code, and the request that it looks at must not notice.
                if not shadow.errors:
                    logger.exception("shadow policy %r failed; counted from now on, not logged", shadow.name)
                self._failed(shadow)
                continue
            self._count(shadow.tally, wanted, live, request, candidates, now)
        spent = time.perf_counter() - started
        self.spent_seconds += spent
        self._allowance -= spent
        if self._metrics is not None:
            self._metrics.shadow_spent(spent)

    def to_json(self) -> dict[str, Any]:
        """For people and programs."""
        shown = self.live.decisions
        return {
            "policies": [
                self.live.to_json(),
                *({**shadow.tally.to_json(), "errors": shadow.errors} for shadow in self._shadows),
            ],
            "skipped": self.skipped,
            "cost_microseconds": round(self.spent_seconds / shown * 1e6, 1) if shown else None,
        }

    def _count(
        self,
        tally: PolicyTally,
        chosen: WorkerWithFacts,
        live: WorkerWithFacts,
        request: RouteRequest,
        candidates: Sequence[WorkerWithFacts],
        now: float,
    ) -> None:
        agrees = chosen.key == live.key
        tally.agreements += agrees
        tally.count(chosen, candidates, request.prompt_tokens, now)
        seconds = self._regret.predict(chosen.facts, request.prompt_tokens)
        if seconds is not None:
            tally.predict(seconds)
        if self._metrics is not None:
            blocks = request.prompt_tokens // chosen.facts.block_size
            self._metrics.policy_decided(tally.name, chosen.facts, blocks, seconds, agrees=agrees)

    def _failed(self, shadow: ShadowPolicy) -> None:
        shadow.errors += 1
        if self._metrics is not None:
            self._metrics.shadow_failed(shadow.name)

    def _may_run(self, now: float) -> bool:
        if self._share is None:
            return True
        if self._seen is not None:
            self._allowance = min(_BURST_SECONDS, self._allowance + self._share * max(0.0, now - self._seen))
        self._seen = now
        return self._allowance > 0


def shadow_policies(settings: RouterSettings, plugins: Plugins) -> list[ShadowPolicy]:
    """A fresh policy for each ``--router-shadow-mode``: a mode, or ``MODE:SETTING=VALUE:...``.

    A setting is named as its flag, with or without ``router-`` or ``router-kv-`` before it.

    Raises:
        ConfigError: there is no such mode or setting, or a value is wrong.
        PluginNotFound: an added filter or scorer is not installed.
    """
    found = []
    for text in settings.router_shadow_modes:
        mode, *changes = text.split(":")
        changed = _changed(settings, text, changes)
        found.append(ShadowPolicy(text, policy_for_mode(mode, plugins, changed)))
    if len({shadow.name for shadow in found}) != len(found):
        raise ConfigError("two shadow policies are alike", param="router_shadow_modes")
    return found


def _changed(settings: RouterSettings, text: str, changes: Sequence[str]) -> RouterSettings:
    values: dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition("=")
        name = _setting_name(key, text)
        if element_type(RouterSettings.model_fields[name].annotation) is not None:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    try:
        return RouterSettings(**{**settings.model_dump(), **values})
    except ValidationError as error:
        reasons = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors() if item["loc"])
        raise ConfigError(f"shadow policy {text!r}: {reasons}", param="router_shadow_modes") from error


def _setting_name(key: str, text: str) -> str:
    folded = key.strip().lstrip("-").replace("-", "_")
    known = RouterSettings.model_fields
    for name in (folded, f"router_{folded}", f"router_kv_{folded}", f"router_{folded}s"):
        if name in known:
            return name
    guess = nearest(f"router_{folded}", list(known))
    raise ConfigError(
        f"shadow policy {text!r}: there is no setting {key!r}",
        param="router_shadow_modes",
        hint=f"did you mean {guess.removeprefix('router_')!r}?" if guess else "as in kv:temperature=0.5",
    )
