"""Pages of OpenAI's lists: ``limit``, ``order`` and ``after`` of the query, ``has_more`` of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec

from dynamo.errors import InvalidRequest

__all__ = ["Page", "list_body"]

_LIMIT_DIGITS = 9


class Page(msgspec.Struct):
    """Which part of a list a client asks for."""

    limit: int
    newest_first: bool
    after: str | None
    """Id of the last item of the page before."""

    @classmethod
    def from_query(cls, query: str, *, default: int = 20, most: int = 100) -> Page:
        """Read the query.

        Raises:
            InvalidRequest: a value is wrong; `param` names it.
        """
        given = {key: values[-1] for key, values in parse_qs(query).items()}
        limit, order = given.get("limit", str(default)), given.get("order", "desc")
        if not (limit.isascii() and limit.isdigit() and len(limit) <= _LIMIT_DIGITS and 1 <= int(limit) <= most):
            raise InvalidRequest(f"'limit' must be between 1 and {most}", param="limit")
        if order not in ("asc", "desc"):
            raise InvalidRequest("'order' must be asc or desc", param="order")
        return cls(int(limit), order == "desc", given.get("after"))

    def of(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The list body of `items`, given oldest first.

        Raises:
            InvalidRequest: `after` is the id of no item.
        """
        ordered = items[::-1] if self.newest_first else items
        if self.after is not None:
            ids = [item["id"] for item in ordered]
            if self.after not in ids:
                raise InvalidRequest(f"there is no item {self.after!r}", param="after")
            ordered = ordered[ids.index(self.after) + 1 :]
        return list_body(ordered[: self.limit], has_more=len(ordered) > self.limit)


def list_body(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """One page, in its order."""
    return {
        "object": "list",
        "data": list(data),
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
