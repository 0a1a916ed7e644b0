"""Who is who: namespace / component / endpoint / instance.

An *instance* is a process address: one process that serves an endpoint. A data-parallel rank is a choice inside it, so
whatever routes, books load or indexes KV blocks uses :class:`WorkerKey`, ``(instance_id, dp_rank)``.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple, NewType

from dynamo.errors import ConfigError

__all__ = ["EndpointAddress", "InstanceId", "WorkerKey", "format_instance_id", "new_instance_id"]

#: Random and below 2**53, so that it survives JSON readers that hold numbers in a double.
InstanceId = NewType("InstanceId", int)

_PART = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\Z")


class WorkerKey(NamedTuple):
    """The routing key: one data-parallel rank of one instance."""

    instance_id: InstanceId
    dp_rank: int = 0


class EndpointAddress(NamedTuple):
    """``dyn://namespace.component.endpoint``."""

    namespace: str
    component: str
    endpoint: str

    def __str__(self) -> str:
        return f"dyn://{self.namespace}.{self.component}.{self.endpoint}"

    @classmethod
    def parse(cls, text: str) -> EndpointAddress:
        """Read ``dyn://namespace.component.endpoint``; the scheme may be left out.

        Raises:
            ConfigError: not three parts, or a part that is not letters, digits, ``-`` and ``_``.
        """
        parts = text.removeprefix("dyn://").split(".")
        if len(parts) != 3:
            raise ConfigError(
                f"endpoint address {text!r} has {len(parts)} parts",
                hint="write it as dyn://namespace.component.endpoint",
            )
        return cls.of(*parts)

    @classmethod
    def of(cls, namespace: str, component: str, endpoint: str) -> EndpointAddress:
        """Build an address from parts, each checked.

        Raises:
            ConfigError: a part is empty, longer than 63 characters or holds other characters.
        """
        for kind, part in (("namespace", namespace), ("component", component), ("endpoint", endpoint)):
            if not _PART.match(part):
                raise ConfigError(
                    f"{kind} {part!r} is not a valid name",
                    hint="use 1 to 63 letters, digits, '-' and '_', with a letter or digit at both ends",
                )
        return cls(namespace, component, endpoint)


def new_instance_id() -> InstanceId:
    """A fresh random id."""
    return InstanceId(secrets.randbits(53))


def format_instance_id(instance_id: int) -> str:
    """The 14 hex digits that logs, file names and headers show."""
    return f"{instance_id:014x}"
