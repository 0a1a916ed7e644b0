"""What a client may tell the router about one request: its session, and cost parameters of its own.

The session is told apart by API key, so nobody joins another's. Who may bring parameters is up to
`dynamo.frontend.nvext.may_steer`: they can send a request to a worker that is busy, which is others' time too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from dynamo.errors import InvalidRequest
from dynamo.frontend.nvext import may_steer
from dynamo.frontend.security.identity import current_identity
from dynamo.protocols.routing import RouterOverrides

__all__ = ["RoutingHints", "routing_hints"]

SESSION_HEADER = "x-dynamo-session-id"
OVERRIDES_HEADER = "x-dynamo-router"
_OVERRIDES_FIELD = "nvext.router"
_LONGEST_SESSION = 256
_LARGEST_VALUE = 1e6
_PARAMETERS = {name.replace("_", "-"): name for name in RouterOverrides.__struct_fields__}


class RoutingHints(NamedTuple):
    """See `dynamo.protocols.routing.RouteRequest`."""

    session: str | None = None
    overrides: RouterOverrides | None = None


def routing_hints(
    headers: Mapping[str, str], given: RouterOverrides | None = None, *, overrides_for_all: bool
) -> RoutingHints:
    """The hints of the current request, with the parameters `given` in its body.

    Raises:
        InvalidRequest: the session's name is too long; a parameter is unknown, out of range, or not allowed here.
    """
    session = headers.get(SESSION_HEADER) or None
    text = headers.get(OVERRIDES_HEADER)
    if session is None and text is None and given is None:
        return RoutingHints()
    identity = current_identity()
    if session is not None:
        if len(session) > _LONGEST_SESSION:
            raise InvalidRequest(
                f"{SESSION_HEADER} has {len(session)} characters; at most {_LONGEST_SESSION} are allowed",
                param=SESSION_HEADER,
            )
        session = f"{identity.name}/{session}"
    if text is None and given is None:
        return RoutingHints(session)
    if not may_steer(for_all=overrides_for_all):
        raise InvalidRequest(
            "this server does not take router parameters from requests",
            param=_OVERRIDES_FIELD if text is None else OVERRIDES_HEADER,
            hint="leave them out, use an admin key, or start the frontend with --router-request-overrides",
        )
    if given is None:
        return RoutingHints(session, _overrides(text or ""))
    _check(given)
    return RoutingHints(session, given)


def _check(given: RouterOverrides) -> None:
    for name, value in msgspec.structs.asdict(given).items():
        if value is not None and not 0 <= value <= _LARGEST_VALUE:
            raise InvalidRequest(
                f"'{_OVERRIDES_FIELD}.{name}' is {value:g}; it must be from 0 to {_LARGEST_VALUE:.0f}",
                param=f"{_OVERRIDES_FIELD}.{name}",
            )


def _overrides(text: str) -> RouterOverrides:
    """``overlap-score-credit=0.5, temperature=0``."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        field = _PARAMETERS.get(name.strip())
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if field is None or not 0 <= value <= _LARGEST_VALUE:
            raise InvalidRequest(
                f"{OVERRIDES_HEADER} has {part.strip()[:64]!r}; it takes NAME=NUMBER, from 0 to {_LARGEST_VALUE:.0f}",
                param=OVERRIDES_HEADER,
                hint=f"names are {', '.join(sorted(_PARAMETERS))}",
            )
        values[field] = value
    return msgspec.structs.replace(RouterOverrides(), **values)
