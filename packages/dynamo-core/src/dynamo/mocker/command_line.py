"""Flags of other simulators' command lines that the worker host spells in another way."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo.protocols.addressing import EndpointAddress

__all__ = ["worker_arguments"]

_ROLES = {"--is-prefill-worker": "prefill", "--is-decode-worker": "decode"}


def worker_arguments(argv: Sequence[str]) -> list[str]:
    """`argv` with ``--endpoint dyn://a.b.c`` and the role switches as the worker host has them.

    Raises:
        ConfigError: the endpoint is not three names.
    """
    arguments: list[str] = []
    rest = iter(argv)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag == "--endpoint":
            address = EndpointAddress.parse(value if equals else next(rest, ""))
            arguments += ["--namespace", address.namespace, "--component", address.component]
            arguments += ["--endpoint-name", address.endpoint]
        elif flag in _ROLES:
            arguments += ["--disaggregation-mode", _ROLES[flag]]
        else:
            arguments.append(argument)
    return arguments
