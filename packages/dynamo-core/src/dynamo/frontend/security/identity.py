"""The API key that a request came with, as everything behind admission sees it.

It travels in a context variable: tasks and callbacks that a handler starts inherit it, and no layer between admission
and the model table has to pass it on. Work on behalf of an earlier request (a batch) runs under `run_as`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from dynamo.errors import Unauthorized
from dynamo.frontend.security.rate_limits import Budget

__all__ = ["ANONYMOUS", "AdminRequired", "Identity", "current_identity", "run_as"]

A = TypeVar("A")


class AdminRequired(Unauthorized):
    """The key is right, and is no admin's."""

    code = "admin_required"
    http_status = 403


class Identity:
    """One API key: its name, its models, its budget. State that outlives a request is owned by `name`."""

    __slots__ = ("_models", "admin", "budget", "name")

    def __init__(
        self,
        name: str,
        models: frozenset[str] | None = None,
        budget: Budget | None = None,
        *,
        admin: bool = False,
    ) -> None:
        self.name = name
        self._models = models
        self.budget = budget
        """None: unlimited."""
        self.admin = admin
        """Whether it may see and change what concerns all keys."""

    def may_use(self, *names: str) -> bool:
        """Whether it may use a model that has these names (the one asked for, the one it is an alias of)."""
        return self._models is None or not self._models.isdisjoint(names)

    def unmetered(self) -> Identity:
        """The same key for work that its limits per minute do not count."""
        return Identity(self.name, self._models)


#: Everybody, when no API keys are configured; probes and this process itself, when they are.
ANONYMOUS = Identity("")

_current: ContextVar[Identity] = ContextVar("dynamo_frontend_identity", default=ANONYMOUS)


def current_identity() -> Identity:
    """Whose request this is."""
    return _current.get()


def run_as(identity: Identity, function: Callable[[A], None], argument: A) -> None:
    """Call ``function(argument)`` for `identity`, whose tasks and later callbacks then belong to it too."""
    token = _current.set(identity)
    try:
        function(argument)
    finally:
        _current.reset(token)
