"""``nvext``: what clients of NVIDIA Dynamo may add to a chat or a completion, as far as it means something here.

Names are that project's, as its users send them. What is not named here is accepted and has no effect.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from dynamo.errors import InvalidRequest
from dynamo.frontend.metrics import RequestMetrics
from dynamo.frontend.security.identity import current_identity
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.routing import RouterOverrides

__all__ = ["AgentHints", "ExtraBody", "Nvext", "annotation_events", "extra_body", "may_steer", "pinned_worker"]

#: Makes the ``nvext`` object of an answer, at its end.
ExtraBody: TypeAlias = Callable[[], "dict[str, Any]"]

_EXTRA_FIELDS = ("worker_id", "timing")
#: As `dynamo.protocols.addressing.format_instance_id` writes it.
_INSTANCE_NAME = re.compile(r"[0-9a-fA-F]{1,14}\Z")
_INSTANCES = 1 << 56

_json = msgspec.json.Encoder().encode


class AgentHints(msgspec.Struct):
    """``nvext.agent_hints``."""

    priority: Annotated[int, msgspec.Meta(ge=-(2**31) + 1, le=2**31 - 1)] | None = None
    """Higher is sooner; the opposite of `priority` beside it."""
    osl: Annotated[int, msgspec.Meta(ge=0)] | None = None
    strict_priority: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    """Tier in the router's queue: a higher one goes before all of lower ones, whatever their `priority`."""
    speculative_prefill: Any = None


class Nvext(msgspec.Struct):
    """The object."""

    greed_sampling: bool | None = None
    """Temperature 0, whatever else is said."""
    backend_instance_id: int | str | None = None
    """The worker to use, as `/health` and `extra_fields` name it: a number, or 14 hexadecimal digits."""
    decode_worker_id: int | str | None = None
    """The same, where `backend_instance_id` is not given."""
    dp_rank: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Its data-parallel rank."""
    token_data: list[int] | None = None
    """Token ids of the prompt, in place of template and tokenizer."""
    cache_salt: str | None = None
    """As the parameter of the request itself, where that is not given."""
    guided_json: str | dict[str, Any] | None = None
    """As the parameters of the request itself, instead of them."""
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    annotations: list[str] | None = None
    """Events before a stream's first text: ``formatted_prompt``, ``token_ids``."""
    extra_fields: list[str] | None = None
    """What the answer's ``nvext`` shall hold: ``worker_id``, ``timing``."""
    agent_hints: AgentHints | None = None
    router: RouterOverrides | None = None
    """Cost parameters for this request, as the header x-dynamo-router gives them; they count more."""
    explain: bool | None = None
    """Whether the answer's ``nvext`` shall hold ``routing``, as the header x-dynamo-explain asks for."""
    use_raw_prompt: Any = None
    prefill_worker_id: Any = None
    max_thinking_tokens: Any = None
    agent_context: Any = None
    session_control: Any = None


def may_steer(*, for_all: bool) -> bool:
    """Whether the current client may choose its worker, or change what the router goes by: both can crowd a worker.

    Where there are API keys, others are protected from that: only admins may, unless the server lets all.
    """
    identity = current_identity()
    return for_all or identity.admin or not identity.name


def pinned_worker(nvext: Nvext | None, *, pins_for_all: bool) -> WorkerKey | None:
    """The worker that the client chose; None: the router chooses.

    Raises:
        InvalidRequest: what should name it names no worker, or the client may not choose.
    """
    if nvext is None:
        return None
    given = nvext.backend_instance_id if nvext.backend_instance_id is not None else nvext.decode_worker_id
    if given is None:
        return None
    if not may_steer(for_all=pins_for_all):
        raise InvalidRequest(
            "this server does not let requests choose their worker",
            param="nvext.backend_instance_id",
            hint="leave the field out, use an admin key, or start the frontend with --router-request-overrides",
        )
    return WorkerKey(InstanceId(_instance_number(given)), nvext.dp_rank or 0)


def extra_body(nvext: Nvext, metrics: RequestMetrics) -> ExtraBody | None:
    """What makes the ``nvext`` of the answer; None when nothing of it was asked for."""
    wanted = [name for name in nvext.extra_fields or () if name in _EXTRA_FIELDS]
    if not wanted and not nvext.explain:
        return None
    received = time.time()

    def make() -> dict[str, Any]:
        body: dict[str, Any] = {}
        if "worker_id" in wanted and metrics.worker is not None:
            instance, rank = metrics.worker
            body["worker_id"] = {"decode_worker_id": int(instance), "decode_dp_rank": rank}
        if metrics.routing is not None:
            body["routing"] = metrics.routing
        if "timing" in wanted:
            ttft, total = metrics.seconds_so_far()
            body["timing"] = {
                "request_received_ms": round(received * 1000),
                "ttft_ms": None if ttft is None else round(ttft * 1000, 3),
                "total_time_ms": round(total * 1000, 3),
            }
        return body

    return make


def annotation_events(nvext: Nvext, texts: Sequence[str], token_ids: Sequence[Sequence[int]]) -> bytes:
    """Events with what a stream was asked to tell of its prompts: the name, and the value as JSON in a comment.

    Clients that do not know them skip comments, and an event without data.
    """
    values: dict[str, Sequence[Any]] = {"formatted_prompt": texts, "token_ids": token_ids}
    events = b""
    for name in dict.fromkeys(nvext.annotations or ()):
        for value in values.get(name, ()):
            events += b"event: %b\n: %b\n\n" % (name.encode(), _json(value))
    return events


def _instance_number(given: int | str) -> int:
    number = given if isinstance(given, int) else int(given, 16) if _INSTANCE_NAME.match(given) else -1
    if not 0 <= number < _INSTANCES:
        raise InvalidRequest(f"{str(given)[:64]!r} names no worker", param="nvext.backend_instance_id")
    return number
