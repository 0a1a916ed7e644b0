"""Flags of commands for other frontends that this one takes and ignores. Used by ``python3 -m dynamo.frontend``.

Only flags whose absence changes nothing that a client sees; any other is unknown, and refused with the nearest name.
"""

from __future__ import annotations

from dynamo.config.foreign_flags import ForeignFlag

__all__ = ["FOREIGN_FLAGS"]

_ALWAYS = "it is always so"
_LOAD = "load is always tracked this way, and corrected by what workers publish"
_ONE_INDEX = "one index serves all workers, and no threads"
_COST = "it weighs an older cost; see --router-mode kv-upstream and --router-prefill-load-scale"

FOREIGN_FLAGS: dict[str, ForeignFlag] = {
    "--kv-cache-block-size": ForeignFlag(1, "the block size is the workers' own, from their model cards"),
    "--router-reset-states": ForeignFlag(0, "nothing is kept: the router asks the workers what they hold"),
    "--router-durable-kv-events": ForeignFlag(0, "see --event-plane-durable"),
    "--router-snapshot-threshold": ForeignFlag(1, "nothing is kept: the router asks the workers what they hold"),
    "--enable-anthropic-api": ForeignFlag(0, _ALWAYS),
    "--exclude-tools-when-tool-choice-none": ForeignFlag(0, _ALWAYS),
    "--tokenizer-fallback": ForeignFlag(0, _ALWAYS),
    "--dyn-preprocess-workers": ForeignFlag(1, "long prompts are tokenized in threads"),
    "--dyn-debug-perf": ForeignFlag(0, "see --request-log and /metrics"),
    "--response-plane": ForeignFlag(1, "answers come back on the connection that the request took"),
    "--router-event-threads": ForeignFlag(1, _ONE_INDEX),
    "--load-aware": ForeignFlag(0, "see --router-mode least-loaded and kv"),
    "--router-track-active-blocks": ForeignFlag(0, _LOAD),
    "--track-active-blocks": ForeignFlag(0, _LOAD),
    "--router-track-prefill-tokens": ForeignFlag(0, _LOAD),
    "--router-track-output-blocks": ForeignFlag(0, _LOAD),
    "--track-output-blocks": ForeignFlag(0, _LOAD),
    "--router-assume-kv-reuse": ForeignFlag(0, _LOAD),
    "--assume-kv-reuse": ForeignFlag(0, _LOAD),
    "--kv-overlap-score-weight": ForeignFlag(1, _COST),
    "--router-kv-overlap-score-weight": ForeignFlag(1, _COST),
    "--router-tracking-hash": ForeignFlag(1, "hashes stay within the deployment"),
}
