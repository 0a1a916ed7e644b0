"""What a hook receives: a typed registrar of names. `dynamo.plugins.registry` implements it."""

from __future__ import annotations

from typing import Literal, Protocol, TypeVar

__all__ = ["Registry", "Stability"]

T_contra = TypeVar("T_contra", contravariant=True)

Stability = Literal["alpha", "beta", "stable"]


class Registry(Protocol[T_contra]):
    """Names of one kind of part (engines, routers, ...)."""

    def register(self, name: str, target: str | T_contra, *, stability: Stability = "beta", summary: str = "") -> None:
        """Add `name`.

        `target` is the part itself or, better, an import string ``"package.module:attribute"`` that is imported only
        when somebody chooses the name. `summary` is one line for ``dynamo plugins``.

        Raises:
            PluginError: the name or the import string is malformed.
        """
        ...
