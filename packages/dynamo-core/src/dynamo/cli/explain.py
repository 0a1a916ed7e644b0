"""``dynamo explain REQUEST_ID``: why a request went to its worker, as the frontend that routed it remembers."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import click
import httpx

from dynamo.cli.connection import connection_errors, http_client
from dynamo.cli.openai_client import base_url
from dynamo.cli.table import format_table
from dynamo.errors import DynamoError, ModelNotFound

__all__ = ["explain"]

_HEADER = (
    "",
    "worker",
    "rank",
    "cost",
    "cached",
    "new",
    "to compute",
    "waiting tokens",
    "decode blocks",
    "requests",
    "predicted TTFT",
)

#: To a 403 the frontend has one itself.
_HINTS = {
    401: "give the key with --api-key or OPENAI_API_KEY",
    404: "start the frontend with --explain, or use an admin's --api-key",
}

#: Frontends that share a port each know their own decisions, and the kernel picks one per connection: with four, an
#: answer that is there is missed once in a hundred times.
_ASKS = 16


@click.command("explain")
@click.argument("request_id")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The frontend.")
@click.option("--api-key", envvar="OPENAI_API_KEY", default="", help="Sent as bearer token.  [env: OPENAI_API_KEY]")
@click.option("--cacert", metavar="FILE", help="PEM certificates to trust; SSL_CERT_FILE does the same.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(request_id: str, url: str, api_key: str, cacert: str | None, as_json: bool) -> None:
    """Show every candidate of a request, cheapest first. REQUEST_ID is the `id` of the answer.

    The frontend must run with --explain, or the API key be an admin's. Costs are in KV blocks; regret is the time to
    the first token minus the least that was predicted for the other candidates.
    """
    decisions = _fetch(request_id, url, api_key, cacert)
    if as_json:
        click.echo(json.dumps(decisions, indent=2))
        return
    for decision in decisions:
        margin = decision["margin_blocks"]
        lead = "the only candidate" if margin is None else f"{margin:g} blocks ahead of the next"
        click.echo(f"{decision['request_id']}: {decision['worker']} rank {decision['dp_rank']}, {lead}")
        click.echo(f"model {decision['model']}, mode {decision['mode']}, {decision['prompt_tokens']} prompt tokens")
        if decision.get("chosen_by", "router") != "router":  # a frontend of before does not say
            click.echo(f"chosen by {decision['chosen_by']}: the worker claimed the request")
        if decision["queued_seconds"]:
            click.echo(f"waited {_milliseconds(decision['queued_seconds'])} in the router's queue")
        click.echo(format_table(_HEADER, [_row(candidate) for candidate in decision["candidates"]]))
        click.echo(_outcome(decision["ttft"]))


def _outcome(ttft: dict[str, float | None] | None) -> str:
    if ttft is None:
        return "no first token was seen"
    text = f"first token after {_milliseconds(ttft['realised_seconds'])}"
    if ttft["predicted_seconds"] is not None:
        text += f", {_milliseconds(ttft['predicted_seconds'])} predicted"
    if ttft["regret_seconds"] is not None:
        error = ttft["predictor_error_seconds"]
        text += f"; regret {_milliseconds(ttft['regret_seconds'])}"
        text += f" (predictions are off by {_milliseconds(error)})" if error is not None else ""
    return text


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _fetch(request_id: str, url: str, api_key: str, cacert: str | None) -> list[dict[str, Any]]:
    root = base_url(url).removesuffix("/v1")
    address = f"{root}/debug/routing/{urllib.parse.quote(request_id, safe='')}"
    try:
        for _ in range(_ASKS):
            # Each over a connection of its own: only a new one may come to another frontend.
            client = http_client(root, api_key=api_key, cacert=cacert, timeout=httpx.Timeout(10.0))
            with connection_errors(root), client:
                response = client.get(address)
            body = response.json()
            if response.status_code != 404 or body["error"]["code"] != "request_not_found":
                break
    except ValueError as error:
        raise DynamoError(f"{address} gives no JSON", hint="is it a dynamo frontend?") from error
    if response.status_code == 200:
        found: list[dict[str, Any]] = body["decisions"]
        return found
    problem = body.get("error", {}) if isinstance(body, dict) else {}
    if problem.get("code") == "request_not_found":
        raise ModelNotFound(str(problem.get("message")))  # which says what is kept
    raise DynamoError(
        f"{address}: status {response.status_code}: {problem.get('message', '')}",
        hint=_HINTS.get(response.status_code),
    )


def _row(candidate: dict[str, Any]) -> tuple[str, ...]:
    return (
        "*" if candidate["chosen"] else "",
        candidate["worker"],
        str(candidate["dp_rank"]),
        f"{candidate['cost_blocks']:g}",
        str(candidate["overlap_blocks"]),
        str(candidate["new_blocks"]),
        str(candidate["uncached_tokens"]),
        str(candidate["active_prefill_tokens"]),
        str(candidate["active_decode_blocks"]),
        str(candidate["active_requests"]),
        _milliseconds(candidate["predicted_ttft_seconds"]),
    )
