"""``dynamo explain REQUEST_ID``: why a request went to its worker, as the frontend that routed it remembers."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import click
import httpx

from dynamo.cli.openai_client import base_url
from dynamo.cli.table import format_table
from dynamo.errors import CannotConnect, DynamoError, ModelNotFound

__all__ = ["explain"]

_HEADER = ("", "worker", "rank", "cost", "cached", "new", "waiting tokens", "decode blocks", "requests")


@click.command("explain")
@click.argument("request_id")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The frontend.")
@click.option("--api-key", envvar="OPENAI_API_KEY", default="", help="Sent as bearer token.  [env: OPENAI_API_KEY]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(request_id: str, url: str, api_key: str, as_json: bool) -> None:
    """Show every candidate of a request, cheapest first. REQUEST_ID is the `id` of the answer.

    The frontend must run with --explain. Costs are in KV blocks.
    """
    decisions = _fetch(request_id, url, api_key)
    if as_json:
        click.echo(json.dumps(decisions, indent=2))
        return
    for decision in decisions:
        margin = decision["margin_blocks"]
        lead = "the only candidate" if margin is None else f"{margin:g} blocks ahead of the next"
        click.echo(f"{decision['request_id']}: {decision['worker']} rank {decision['dp_rank']}, {lead}")
        click.echo(f"model {decision['model']}, mode {decision['mode']}, {decision['prompt_tokens']} prompt tokens")
        click.echo(format_table(_HEADER, [_row(candidate) for candidate in decision["candidates"]]))


def _fetch(request_id: str, url: str, api_key: str) -> list[dict[str, Any]]:
    root = base_url(url).removesuffix("/v1")
    address = f"{root}/debug/routing/{urllib.parse.quote(request_id, safe='')}"
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(address, headers=headers, timeout=10.0)
        body = response.json()
    except httpx.TransportError as error:
        raise CannotConnect(
            f"no answer from {root}: {error}", param="--url", hint="is the frontend running there?"
        ) from error
    except ValueError as error:
        raise DynamoError(f"{address} gives no JSON", hint="is it a dynamo frontend?") from error
    if response.status_code == 200:
        found: list[dict[str, Any]] = body["decisions"]
        return found
    problem = body.get("error", {}) if isinstance(body, dict) else {}
    if problem.get("code") == "request_not_found":
        raise ModelNotFound(str(problem.get("message")), hint="only the last decisions are kept")
    raise DynamoError(
        f"{address}: status {response.status_code}: {problem.get('message', '')}",
        hint="start the frontend with --explain",
    )


def _row(candidate: dict[str, Any]) -> tuple[str, ...]:
    return (
        "*" if candidate["chosen"] else "",
        candidate["worker"],
        str(candidate["dp_rank"]),
        f"{candidate['cost_blocks']:g}",
        str(candidate["overlap_blocks"]),
        str(candidate["new_blocks"]),
        str(candidate["active_prefill_tokens"]),
        str(candidate["active_decode_blocks"]),
        str(candidate["active_requests"]),
    )
