"""Bodies of the select service's requests, and the prompts in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.errors import InvalidRequest, ModelNotFound
from dynamo.frontend.text_rules import ReservationName
from dynamo.frontend.token_inputs import encode_texts
from dynamo.preprocessor import TextModel
from dynamo.protocols.llm import pack_token_ids
from dynamo.protocols.routing import PromptHashes, RouteRequest, RouterOverrides

__all__ = ["ReserveRequest", "SelectRequest", "prompt_tokens", "route_request"]

_Weight = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class SelectRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /select``, ``/overlap_scores`` and ``/potential_loads``: one of `token_ids`, `prompt` and `messages`."""

    model: str | None = None
    """None: the only model that has workers."""
    token_ids: list[_TokenId] | None = None
    """As the engine will see them."""
    prompt: str | None = None
    """Needs a tokenizer (``--tokenizer``)."""
    messages: list[dict[str, Any]] | None = None
    """A chat; needs a tokenizer with a chat template."""
    add_special_tokens: bool = True
    """Of `prompt`."""
    lora: str | None = None
    cache_salt: str | None = None
    priority: int = 0
    excluded_workers: list[str] = []
    """Workers that failed this request; they are taken only if no other is there."""
    overlap_score_credit: _Weight | None = None
    prefill_load_scale: _Weight | None = None
    temperature: _Weight | None = None
    explain: bool = False
    """Answer with every candidate."""


class ReserveRequest(SelectRequest, kw_only=True, forbid_unknown_fields=True):
    """``POST /select_and_reserve``."""

    reservation_id: ReservationName | None = None
    """None: the service makes one up."""
    ttl_seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """At most --reservation-seconds, which None is."""


async def prompt_tokens(request: SelectRequest, model: str, texts: Mapping[str, TextModel]) -> npt.NDArray[np.uint32]:
    """The prompt, shape ``[n_tokens]``.

    Raises:
        InvalidRequest: not one prompt but none or several, an empty one, or one that the template refuses.
        ModelNotFound: it is text, and there is no tokenizer for the model.
    """
    given = [value for value in (request.token_ids, request.prompt, request.messages) if value is not None]
    if len(given) != 1:
        raise InvalidRequest("give one of token_ids, prompt and messages", param="token_ids")
    if not given[0]:
        raise InvalidRequest("the prompt is empty", param="token_ids")
    if request.token_ids is not None:
        return np.asarray(request.token_ids, dtype=np.uint32)
    text = texts.get(model)
    if text is None:
        raise ModelNotFound(
            f"there is no tokenizer for {model!r}", param="prompt", hint="send token_ids, or start with --tokenizer"
        )
    if request.prompt is not None:
        whole, special = request.prompt, request.add_special_tokens
    else:
        whole, special = text.template.render(request.messages or []), False
    [tokens] = await encode_texts(text.tokenizer, [whole], add_special_tokens=special)
    return tokens


def route_request(
    request: SelectRequest,
    request_id: str,
    model: str,
    tokens: npt.NDArray[np.uint32],
    *,
    excluded: frozenset[int] = frozenset(),
    tenant: str = "",
) -> RouteRequest:
    """The facts that a decision uses."""
    overrides = RouterOverrides(request.overlap_score_credit, request.prefill_load_scale, request.temperature)
    return RouteRequest(
        request_id=request_id,
        model=model,
        prompt_tokens=len(tokens),
        lora=request.lora,
        priority=request.priority,
        excluded=excluded,
        prompt=PromptHashes(pack_token_ids(tokens), request.lora, request.cache_salt),
        overrides=None if overrides == RouterOverrides() else overrides,
        tenant=tenant,
    )
